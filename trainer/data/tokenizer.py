"""The tokenizer of a model, without the model. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from profiles.errors import ConfigError, EnvironmentFault, UnknownModelError
from trainer.model.model_name import weights_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model", "vocab.json")
"""Any of these belongs to a tokenizer."""


def find_tokenizer(model: str, *, download: bool) -> "PreTrainedTokenizerBase | None":
    """The tokenizer in the folder `model` or in the Hub's cache; with `download` also from the Hub.

    None if it is in neither, or if Transformers is not installed and nothing is to be downloaded. Raises
    UnknownModelError if it cannot be loaded, EnvironmentFault if there is nothing to load it with, and ConfigError for
    one without a token that ends a sequence, or for a `model` that is a bare size.
    """
    name = weights_name(model)
    if not download and not _is_here(name):
        return None
    try:
        from transformers import AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        if not download:
            return None
        raise EnvironmentFault("a tokenizer needs transformers", hint="pip install 'fitune[train]'") from error
    # A row that is longer than the model's context is counted, not passed: no reason to warn.
    logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=not download)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UnknownModelError(f"the tokenizer of {model} cannot be loaded: {first_line}") from error
    if tokenizer.eos_token is None:
        raise ConfigError(f"the tokenizer of {model} has no end-of-sequence token, so nothing can be taught to end")
    return tokenizer


def _is_here(name: str) -> bool:
    """Whether the folder `name`, or what the Hub's cache has of `name`, holds a tokenizer."""
    if Path(name).is_dir():
        return any((Path(name) / file).exists() for file in FILES)
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, file), str) for file in FILES)
