"""The model and its tokenizer as a `RunConfig` describes them.

Loading weights is one function of its own; the others work as well on a model without weights, which is how a step is
traced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations import HfDeepSpeedConfig
from trl.trainer.reward_trainer import suppress_seqcls_warning

from planner.config.run_config import Dtype, RunConfig
from planner.step.resolve import check_encoder_decoder
from profiles.errors import ConfigError, UnknownModelError
from trainer.model.adapter import adapter_config, first_line, linear_names
from trainer.model.hardware import (
    WRITES_INTO_BASE,
    check_attention,
    check_model_type,
    keep_packed_weights,
    return_copies,
)
from trainer.model.model_name import weights_name
from trainer.processes.layout import deepspeed_config

DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def compute_dtype(config: RunConfig) -> torch.dtype:
    """Dtype of the matrix products: that of the autocast, or of the weights where there is none."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "no": DTYPES[config.dtype]}[config.mixed_precision]


def quantization_config(config: RunConfig) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds the base's Linear weights; None if it does not."""
    match config.quantization:
        case None:
            return None
        case "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        case four_bit:
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=four_bit,
                bnb_4bit_use_double_quant=config.double_quant,
                bnb_4bit_compute_dtype=compute_dtype(config),
                bnb_4bit_quant_storage=quant_storage(config),
            )


def quant_storage(config: RunConfig) -> torch.dtype:
    """Dtype that 4-bit weights are packed in: bytes, or one that FSDP can share out."""
    return torch.uint8 if config.quant_storage is None else DTYPES[config.quant_storage]


def load_architecture(config: RunConfig) -> PreTrainedConfig:
    """The model's own configuration.

    Raises UnknownModelError, and ConfigError for a type that overflows in fp16 or rows that it cannot read.
    """
    name = weights_name(config.model)
    try:
        architecture = AutoConfig.from_pretrained(name, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unknown(config, error) from error
    check_model_type(config, architecture.model_type)
    check_attention(config, architecture)
    if architecture.is_encoder_decoder:
        check_encoder_decoder(config, config.model)
    if config.objective == "reward":
        # The one output is the score.
        architecture.num_labels = 1
    positions = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.max_length > positions:
        raise ConfigError(f"max_length is {config.max_length}, but {config.model} reads at most {positions} tokens")
    return architecture


def load_tokenizer(config: RunConfig, architecture: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Padding never counts in the loss, so where a tokenizer has no token for it, the end of sequence stands in; the
    embedding is never resized. Raises UnknownModelError or ConfigError.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            weights_name(config.model), trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise _unknown(config, error) from error
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"the tokenizer of {config.model} has no end-of-sequence token, so nothing can be taught to end"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = architecture.get_text_config().vocab_size
    if len(tokenizer) > rows:
        raise ConfigError(f"the tokenizer of {config.model} has {len(tokenizer)} tokens, but its embedding {rows} rows")
    return tokenizer


def model_class(config: RunConfig, architecture: PreTrainedConfig) -> Any:  # noqa: ANN401  # one of their factories, which have no common public type
    """Which of Transformers' families of models the objective takes: with a head of words, or of one score."""
    if config.objective == "reward":
        return AutoModelForSequenceClassification
    return AutoModelForSeq2SeqLM if architecture.is_encoder_decoder else AutoModelForCausalLM


def load_model(config: RunConfig, architecture: PreTrainedConfig, device: torch.device) -> PreTrainedModel:
    """The base model with its weights, quantized if the run says so. Raises UnknownModelError.

    They are on `device`, and in host memory where no card holds all of them: the engine moves each card's share.
    """
    try:
        # A reward model begins without its score and has no use for the head, which Transformers would point out.
        with suppress_seqcls_warning():
            model = model_class(config, architecture).from_pretrained(
                weights_name(config.model),
                config=architecture,
                dtype=DTYPES[config.dtype],
                attn_implementation=config.attn_implementation,
                quantization_config=quantization_config(config),
                device_map=_placement(config, device),
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
            )
    except (OSError, ValueError) as error:
        raise _unknown(config, error) from error
    keep_packed_weights(model)
    return prepare_model(model)


def _placement(config: RunConfig, device: torch.device) -> dict[str, torch.device] | None:
    """Where Transformers puts the weights; None leaves it to the engine that shares them out."""
    if config.parallel is None or not config.parallel.partitions_weights:
        return {"": device}
    # Left to itself, bitsandbytes would pack the whole model on the card.
    return {"": torch.device("cpu")} if config.quantization and config.parallel.strategy == "fsdp" else None


@contextmanager
def sharing_while_loading(config: RunConfig) -> Iterator[None]:
    """With ZeRO-3, weights that are read inside the block are shared out at once; the trainer is made inside too.

    A weak reference tells Transformers of it: this object's, until the trainer's settings hold their own.
    """
    zero3 = config.parallel is not None and config.parallel.strategy == "zero3"
    announced = HfDeepSpeedConfig(deepspeed_config(config)) if zero3 else None
    yield
    del announced


def empty_model(config: RunConfig, architecture: PreTrainedConfig) -> PreTrainedModel:
    """The base model without its weights, on the default device; Linear layers are not quantized."""
    model = model_class(config, architecture).from_config(
        architecture,
        dtype=DTYPES[config.dtype],
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )
    return prepare_model(model)


def prepare_model(model: PreTrainedModel) -> PreTrainedModel:
    """The same model without the cache of keys and values, which only generation needs."""
    for part in model.modules():
        # An encoder-decoder has a configuration for each half.
        if isinstance(part, PreTrainedModel):
            part.config.use_cache = False
    return model


def wrap_with_adapter(
    model: PreTrainedModel, config: RunConfig, low_cpu_mem_usage: bool = False
) -> PreTrainedModel | PeftModel:
    """`model` with a trainable adapter in front of a frozen base, or itself for full fine-tuning.

    `low_cpu_mem_usage` leaves the adapter's weights on the meta device, for the methods that can. Raises ConfigError
    if no module has one of the names in target_modules, and for what else PEFT refuses.
    """
    adapter = adapter_config(config, model)
    if adapter is None:
        return model
    # PEFT fails with some of its layers in place, whose own names would be among these.
    known = linear_names(model)
    try:
        wrapped = get_peft_model(model, adapter, low_cpu_mem_usage=low_cpu_mem_usage)
    except ValueError as error:
        raise ConfigError(
            f"PEFT cannot put {adapter.peft_type.value} on {config.model}: {first_line(error)}",
            hint=f"its Linear modules are {', '.join(known)}",
        ) from error
    if config.quantization == "int8" and adapter.peft_type.value in WRITES_INTO_BASE:
        return_copies(wrapped)
    return wrapped


def _unknown(config: RunConfig, error: Exception) -> UnknownModelError:
    """Why there is no such model, in one sentence."""
    folder = Path(config.model)
    if folder.is_dir():
        has_weights = any(folder.glob("*.safetensors"))
        what = " ".join(str(error).split()) if has_weights else "it holds no weights in .safetensors files"
        return UnknownModelError(f"the folder {config.model} is no checkpoint to train: {what}")
    first_line = str(error).strip().splitlines()[0]
    return UnknownModelError(
        f"{config.model} cannot be loaded: {first_line}",
        hint="give a folder with a checkpoint, or a Hub id that this machine can reach",
    )
