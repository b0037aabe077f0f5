"""The configuration object of Transformers for the profile of a model."""

from transformers import AutoConfig, PreTrainedConfig

from profiles.architecture_traits import traits_of_type
from profiles.model import ModelProfile

# SigLIP-400M, the vision tower of every Gemma 3 model (transformers 5.23.0: models/gemma3/convert_gemma3_weights.py).
GEMMA3_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}

NOT_CONFIG = {
    "hf_id",
    "model_type",
    "aliases",
    "gated",
    "gated_mlp",
    "num_other_parameters",
    "num_parameters_published",
    "num_parameters_source",
    "sources",
    "unconfirmed",
    "notes",
    "torch_dtype",
}


def transformers_config(model: ModelProfile) -> PreTrainedConfig:
    """The configuration that Transformers would read for `model`."""
    names = traits_of_type(model.model_type).config.names
    fields = model.model_dump(exclude=NOT_CONFIG, exclude_none=True)
    settings = {names.get(field, field): value for field, value in fields.items()} | _settings_of_type(model)
    if model.model_type == "gemma3":
        return AutoConfig.for_model("gemma3", text_config=settings, vision_config=GEMMA3_VISION)
    return AutoConfig.for_model(model.model_type, **settings)


def _settings_of_type(model: ModelProfile) -> dict[str, object]:
    settings: dict[str, object] = {"pad_token_id": None}
    if model.model_type == "mistral":
        settings["sliding_window"] = model.sliding_window
    if model.model_type == "deepseek_v2":
        settings["q_lora_rank"] = model.q_lora_rank
    if model.model_type == "gpt_neo":
        settings["attention_types"] = [[["global", "local"], model.num_hidden_layers // 2]]
    if model.is_encoder_decoder:
        settings["feed_forward_proj"] = "relu" if model.gated_mlp is False else "gated-gelu"
        # A decoder's input is its answer moved by one, with a padding token before it.
        settings["pad_token_id"] = settings["decoder_start_token_id"] = 0
    return settings
