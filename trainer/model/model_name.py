"""Where the weights of a run come from. Needs no torch."""

from pathlib import Path

from profiles.errors import ConfigError
from profiles.model_catalog import find_model, reference_shape


def weights_name(model: str) -> str:
    """The folder or the Hub id of the checkpoint that a run file's `model` means; an alias becomes the id behind it.

    Raises ConfigError for a bare size, which has no weights of its own, and UnknownModelError for an unknown alias.
    """
    if Path(model).is_dir() or "/" in model:
        return model
    reference = reference_shape(model)
    if reference is not None:
        raise ConfigError(
            f"model is {model}, which is a size and not a model with weights",
            hint=f"name a model; {reference.hf_id} is the one that was planned with",
        )
    return find_model(model).hf_id
