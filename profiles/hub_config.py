"""From a Hub `config.json` to a model profile, by the reading rules of its `model_type` (`architectures.toml`)."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from profiles.architecture_traits import ConfigTraits, traits_of_type
from profiles.errors import InputError, UnsupportedError
from profiles.model import ModelProfile

Config = dict[str, Any]

_OUTER_FIELDS = ("model_type", "torch_dtype", "dtype", "tie_word_embeddings", "quantization_config")
"""What a config with a nested `text_config` says outside of it."""

_OUR_FIELDS = frozenset(
    {
        "hf_id",
        "aliases",
        "gated",
        "num_other_parameters",
        "num_parameters_published",
        "num_parameters_source",
        "sources",
        "unconfirmed",
        "notes",
    }
)


def profile_from_config(config: Mapping[str, Any], hf_id: str, source: str) -> ModelProfile:
    """The profile of the model that a Hub config describes.

    Raises UnsupportedError for an architecture that is not described, InputError for a config that misses a field or
    has a value out of range.
    """
    raw = _text_config(config)
    if not isinstance(raw.get("model_type"), str):
        raise InputError(f"{source}: model_type is missing", hint="is this the config.json of a Transformers model?")
    rules = traits_of_type(raw["model_type"]).config
    _check_assumptions(raw, rules, source)
    values = _values(raw, rules)
    _require(values, rules, source)
    try:
        return ModelProfile(**values, hf_id=hf_id, sources=(source,), notes=_quantization_note(raw))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "config"
        raise InputError(f"{source}: {field}: {first['msg']} (value: {first['input']!r})") from error


def _text_config(config: Mapping[str, Any]) -> Config:
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        return dict(config)
    return {**text, **{field: config[field] for field in _OUTER_FIELDS if field in config}}


def _check_assumptions(raw: Config, rules: ConfigTraits, source: str) -> None:
    for field, value in rules.assumes.items():
        if raw.get(field, value) != value:
            raise UnsupportedError(
                f"{source}: {field} is {raw[field]!r}, and only {value!r} is described for {raw['model_type']!r}"
            )


def _values(raw: Config, rules: ConfigTraits) -> Config:
    values = {**rules.defaults, **_translated(raw, rules)}
    heads, hidden_size = values.get("num_attention_heads"), values.get("hidden_size")
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("intermediate_size") is None and rules.intermediate_factor and isinstance(hidden_size, int):
        values["intermediate_size"] = rules.intermediate_factor * hidden_size
    values |= (
        _dtype(raw) | _rotary(raw) | _windows(raw, values) | _multi_query(raw, values) | _encoder_decoder(raw, values)
    )
    return {field: value for field, value in values.items() if field in ModelProfile.model_fields}


def _translated(raw: Config, rules: ConfigTraits) -> Config:
    values = {}
    for field in ModelProfile.model_fields.keys() - _OUR_FIELDS:
        for name in (rules.names.get(field, field), field):
            if name in raw:
                values[field] = raw[name]
                break
    return values


def _dtype(raw: Config) -> Config:
    dtype = raw.get("torch_dtype", raw.get("dtype"))
    return {"torch_dtype": dtype.removeprefix("torch.") if isinstance(dtype, str) else None}


def _rotary(raw: Config) -> Config:
    rope = raw.get("rope_parameters")
    factor = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
    return {} if factor is None else {"partial_rotary_factor": factor}


def _windows(raw: Config, values: Config) -> Config:
    if raw.get("use_sliding_window", values.get("use_sliding_window", True)) is False:
        return {"sliding_window": None, "layer_types": None}
    layers, first = values.get("num_hidden_layers"), raw.get("max_window_layers")
    if values.get("layer_types") is None and isinstance(layers, int) and isinstance(first, int):
        kinds = tuple("sliding_attention" if index >= first else "full_attention" for index in range(layers))
        return {"layer_types": kinds}
    return {}


def _multi_query(raw: Config, values: Config) -> Config:
    multi_query = raw.get("multi_query", values.get("multi_query", False))
    return {"num_key_value_heads": 1} if multi_query and not raw.get("new_decoder_architecture") else {}


def _encoder_decoder(raw: Config, values: Config) -> Config:
    projection = raw.get("feed_forward_proj")
    if not isinstance(projection, str):
        return {}
    gate, _, activation = projection.rpartition("-")
    return {
        "num_decoder_layers": raw.get("num_decoder_layers") or values.get("num_hidden_layers"),
        "gated_mlp": gate == "gated",
        # T5's config class replaces the activation of gated-gelu by the approximation it was trained with.
        "hidden_act": "gelu_new" if projection == "gated-gelu" else activation,
    }


def _require(values: Config, rules: ConfigTraits, source: str) -> None:
    for field, info in ModelProfile.model_fields.items():
        if field not in _OUR_FIELDS and info.is_required() and values.get(field) is None:
            name = rules.names.get(field, field)
            raise InputError(f"{source}: {name} is missing", hint="every Transformers config of this model_type has it")


def _quantization_note(raw: Config) -> str | None:
    method = raw.get("quantization_config")
    if not isinstance(method, Mapping):
        return None
    return f"The checkpoint is quantized already ({method.get('quant_method', 'method not named')})."
