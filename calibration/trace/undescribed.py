"""Networks that the closed form does not describe: what a step's resolution asks of them, read off the real model."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from planner.config.run_config import RunConfig
from profiles.architecture import Architecture, Attention, Block, Embedding, Linear, Mlp
from profiles.errors import ConfigError, UnsupportedError
from trainer.model.adapter import first_line, linear_names
from trainer.model.build import empty_model, model_class


def read_config(folder: Path) -> PreTrainedConfig:
    """The configuration in `folder`. Raises UnsupportedError for a type that the installed Transformers lacks."""
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"{folder / 'config.json'} is no model that Transformers knows: {what}") from error


def undescribed_network(architecture: PreTrainedConfig, config: RunConfig) -> Architecture:
    """The Linear names and the geometry of attention of a model; sizes and the rest stand for nothing.

    Raises ConfigError for more tokens than the model has positions.
    """
    text = architecture.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and config.max_length > positions:
        raise ConfigError(f"max_length is {config.max_length}, but the model reads at most {positions} tokens")
    linears = tuple(Linear(name, 1, 1) for name in linear_names(_empty(architecture, config)))
    # Stands where a part has to have one; PEFT takes no module without a name.
    nothing = next(iter(linears), Linear("", 1, 1))
    mlp = Mlp("mlp", linears, nothing, False, "")
    blocks = tuple(Block("layer", 1, attention, mlp) for attention in _attentions(text, nothing))
    return Architecture((Embedding("", 1, 1),), blocks, (), nothing, tied=False)


def _empty(architecture: PreTrainedConfig, config: RunConfig) -> PreTrainedModel:
    """The model on the meta device; flash attention has the modules of sdpa and need not be installed."""
    code = "eager" if config.attn_implementation == "eager" else "sdpa"
    try:
        with torch.device("meta"):
            return empty_model(config.model_copy(update={"attn_implementation": code}), architecture)
    except ImportError as error:
        raise UnsupportedError(f"a {architecture.model_type} cannot be traced: {first_line(error)}") from error
    except ValueError as error:
        # Transformers' own checks of what a model has.
        why = first_line(error).partition(". ")[0]
        if why.startswith("Unrecognized configuration class"):
            why = f"it is no model of text of {model_class(config, architecture).__name__}"
        raise UnsupportedError(
            f"Transformers has no {architecture.model_type} with attn_implementation {code} that trains on "
            f"{config.objective}: {why[:200]}",
            hint="try --set attn_implementation=eager" if code == "sdpa" and "attention" in why else None,
        ) from error
    except Exception as error:
        raise UnsupportedError(
            f"Transformers cannot build a {architecture.model_type} from its config.json: "
            f"{type(error).__name__}: {first_line(error)[:200]}"
        ) from error


def _attentions(text: Any, nothing: Linear) -> tuple[Attention, ...]:  # noqa: ANN401
    """Each kind of attention among the layers, of which each may have a configuration of its own."""
    layers = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    return tuple(dict.fromkeys(_attention(layer, nothing) for layer in layers))


def _attention(text: Any, nothing: Linear) -> Attention:  # noqa: ANN401 - every type of model has its own class
    # A network of states alone has none; then nothing of what follows is used.
    heads = getattr(text, "num_attention_heads", None) or 1
    # Of a model that has no width of its own, its parts do.
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", heads) // heads
    slides = getattr(text, "use_sliding_window", True)
    return Attention(
        name="attention",
        inputs=(),
        output=nothing,
        num_heads=heads,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=width,
        value_head_dim=getattr(text, "v_head_dim", None) or width,
        window=getattr(text, "sliding_window", None) if slides else None,
    )
