"""LLaMA-Factory's files. Source of what keys do: llamafactory 0.9.5 (`profiles/peers/llama-factory.toml`)."""

from typing import Any

from planner.config.run_config import Objective, RunConfig
from planner.peers.keys import Keys
from planner.peers.reading import HELD_OUT, Reading, data_knobs
from planner.peers.training_arguments import arguments, evaluates, write_arguments
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

ATTENTION = {"auto": "sdpa", "sdpa": "sdpa", "disabled": "eager", "fa2": "flash_attention_2"}
WRITTEN_ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}

STAGES: dict[str, Objective] = {"sft": "sft", "pt": "sft", "dpo": "dpo", "kto": "kto", "rm": "reward"}
WRITTEN_STAGES: dict[Objective, str] = {
    "sft": "sft",
    "dpo": "dpo",
    "ipo": "dpo",
    "orpo": "dpo",
    "kto": "kto",
    "reward": "rm",
}
EXACT = -1
"""pissa_iter of an exact decomposition; any other number is that of steps of an approximate one."""

LOSSES: dict[str, Objective] = {"sigmoid": "dpo", "ipo": "ipo", "orpo": "orpo"}


def read(keys: Keys, model: ModelProfile | None, gpu: GpuProfile | None) -> Reading:
    """A run of LLaMA-Factory's trainer, which is the plain Trainer for answers."""
    knobs = arguments(keys) | _method(keys) | _objective(keys)
    knobs |= _precision(keys, knobs, gpu)
    knobs |= _packing(keys, knobs)
    checkpoints = not keys("disable_gradient_checkpointing")
    share = _evaluation_share(keys)
    objective = knobs["objective"]
    return Reading(
        knobs
        | {
            "model": keys("model_name_or_path"),
            "trust_remote_code": bool(keys("trust_remote_code")),
            "max_length": int(keys("cutoff_len")),
            "attn_implementation": _attention(keys, model),
            "loss": "fused" if keys("enable_liger_kernel") or objective in ("dpo", "ipo", "kto") else "full",
            "gradient_checkpointing": checkpoints,
            "checkpoint_offload": checkpoints and bool(keys("use_unsloth_gc")),
            "data": data_knobs(str(keys("dataset")) if keys("dataset") else None, share),
        },
        _traits(keys),
    )


def write(config: RunConfig) -> dict[str, Any]:
    """The settings of `config`, but for the data."""
    settings = {
        "model_name_or_path": config.model,
        "trust_remote_code": config.trust_remote_code,
        **_write_objective(config),
        "do_train": True,
        **_write_method(config),
        "cutoff_len": config.max_length,
        **({"packing": config.packing, "neat_packing": config.packing} if config.objective == "sft" else {}),
        "flash_attn": WRITTEN_ATTENTION[config.attn_implementation],
        "disable_gradient_checkpointing": not config.gradient_checkpointing,
        **({"use_unsloth_gc": True} if config.checkpoint_offload else {}),
        **({"enable_liger_kernel": True} if config.objective == "sft" and config.loss == "fused" else {}),
        **write_arguments(config),
    }
    if config.mixed_precision == "no" and config.dtype == "bfloat16":
        settings["pure_bf16"] = True
    if config.data is not None and config.data.eval_fraction:
        settings["val_size"] = config.data.eval_fraction
    if config.early_stopping_patience:
        settings["early_stopping_steps"] = config.early_stopping_patience
    return settings


def refusal(config: RunConfig) -> ConfigError | None:
    """Why `config` cannot be said to LLaMA-Factory, or would mean something else there."""
    if config.method == "peft":
        return ConfigError("method is peft, but LLaMA-Factory's adapters are LoRA and OFT", hint="--to script has all")
    if config.checkpoint_every_n_layers > 1:
        return ConfigError(
            "checkpoint_every_n_layers is more than 1, but LLaMA-Factory checkpoints each layer or none",
            hint="set it to 1, or gradient_checkpointing to false",
        )
    if config.padding_free:
        return ConfigError("padding_free is true, for which LLaMA-Factory 0.9.5 has no key", hint="set packing instead")
    if config.lora is not None and config.lora.init_lora_weights not in (True, "pissa"):
        return ConfigError(
            f"lora.init_lora_weights is {config.lora.init_lora_weights}, but LLaMA-Factory has true and pissa",
            hint="--to script has all",
        )
    preference = config.preference
    if preference is not None and (preference.precompute_ref_log_probs or preference.center_rewards_coefficient):
        return ConfigError(
            "LLaMA-Factory has no key for precompute_ref_log_probs and center_rewards_coefficient",
            hint="set them to false and none, or export --to trl",
        )
    return _precision_refusal(config)


def rivals(config: RunConfig) -> tuple[str, ...]:
    """Optimizers that LLaMA-Factory refuses beside adapters (`hparams/finetuning_args.py`)."""
    return () if config.method == "full" else ("use_badam", "use_galore", "use_apollo")


def _precision_refusal(config: RunConfig) -> ConfigError | None:
    """It holds what is trained in float32, and what is frozen in the dtype that it computes in."""
    wanted = {"bf16": "bfloat16", "fp16": "float16"}.get(config.mixed_precision, "bfloat16")
    if config.method == "full" and config.mixed_precision != "no":
        wanted = "float32"
    trains_in_float32 = config.method == "full" and config.mixed_precision == "no" and config.dtype == "float32"
    if config.dtype == wanted or trains_in_float32:
        return None
    return ConfigError(
        f"dtype is {config.dtype} with method {config.method} and mixed_precision {config.mixed_precision}, but "
        f"LLaMA-Factory then has {wanted} weights",
        hint=f"set dtype to {wanted}",
    )


def _method(keys: Keys) -> dict[str, Any]:
    method = keys.choice("finetuning_type", {"lora": "lora", "full": "full"})
    bits = keys("quantization_bit")
    if method == "full":
        if bits:
            raise keys.refuse("quantization_bit", "a quantized base is only trained below an adapter")
        return {"method": "full"}
    if bits:
        keys.choice("quantization_method", {"bnb": "bnb", "bitsandbytes": "bnb"})
    quantization = {None: None, 8: "int8", 4: keys("quantization_type")}.get(bits, "")
    if quantization == "":
        raise keys.refuse("quantization_bit", "only 4 and 8 of bitsandbytes are described")
    rank, targets = keys("lora_rank"), keys("lora_target")
    words = [word.strip() for word in targets.split(",")] if isinstance(targets, str) else list(targets)
    if keys("pissa_init") and keys("pissa_iter") != EXACT:
        keys.leave_out("pissa_init", "each weight is decomposed while loading", "more")
    return {
        "method": "qlora" if quantization else "lora",
        "quantization": quantization,
        "double_quant": bool(keys("double_quantization")),
        "lora": {
            "r": rank,
            "lora_alpha": keys("lora_alpha") or 2 * rank,
            "lora_dropout": keys("lora_dropout"),
            "target_modules": "all-linear" if words == ["all"] else words,
            "use_rslora": bool(keys("use_rslora")),
            "use_dora": bool(keys("use_dora")),
            "init_lora_weights": "pissa" if keys("pissa_init") and keys("pissa_iter") == EXACT else True,
        },
    }


def _write_method(config: RunConfig) -> dict[str, Any]:
    if config.lora is None:
        return {"finetuning_type": "full"}
    lora, targets = config.lora, config.lora.target_modules
    settings: dict[str, Any] = {
        "finetuning_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_target": "all" if targets == "all-linear" else ",".join(targets),
    }
    settings |= {"use_rslora": True} if lora.use_rslora else {}
    settings |= {"use_dora": True} if lora.use_dora else {}
    if lora.init_lora_weights is not True:
        settings |= {"pissa_init": True, "pissa_iter": EXACT}
    if config.quantization == "int8":
        return settings | {"quantization_bit": 8, "quantization_method": "bnb"}
    if config.quantization:
        settings |= {"quantization_bit": 4, "quantization_method": "bnb", "quantization_type": config.quantization}
        settings |= {"double_quantization": config.double_quant}
    return settings


def _precision(keys: Keys, knobs: dict[str, Any], gpu: GpuProfile | None) -> dict[str, str]:
    """What learns is float32 unless pure_bf16 or use_badam; what is frozen has the dtype of the computation."""
    if keys("pure_bf16"):
        return {"dtype": "bfloat16", "mixed_precision": "no"}
    if keys("use_badam"):
        return {"dtype": "bfloat16"}
    mixed = knobs["mixed_precision"]
    if mixed != "no":
        sixteen = {"bf16": "bfloat16", "fp16": "float16"}[mixed]
        return {"dtype": "float32" if knobs["method"] == "full" else sixteen}
    old = gpu is not None and not gpu.supports_bf16
    if knobs["method"] == "full":
        return {"dtype": "float32"}
    return {"dtype": "float16" if old else "bfloat16"}


def _packing(keys: Keys, knobs: dict[str, Any]) -> dict[str, Any]:
    """Only neat packing keeps documents apart, and with a mask; joined without one, a row is a row like others."""
    evaluates_more = knobs["per_device_eval_batch_size"] > knobs["per_device_train_batch_size"]
    flash = keys("flash_attn") == "fa2"
    if keys("packing") and not keys("neat_packing"):
        keys.remarks.append("packing without neat_packing lets the documents of a row see each other")
    return {"packing": bool(keys("neat_packing")) and not (flash and evaluates_more)}


def _attention(keys: Keys, model: ModelProfile | None) -> str:
    if keys("flash_attn") == "auto" and model is not None and model.model_type == "gemma2":
        return "eager"
    code: str = keys.choice("flash_attn", ATTENTION)
    return code


def _objective(keys: Keys) -> dict[str, Any]:
    objective = keys.choice("stage", STAGES)
    if objective == "sft":
        return {"objective": "sft"}
    if objective == "dpo":
        objective = keys.choice("pref_loss", LOSSES)
    preference = {} if objective == "reward" else {"beta": keys("pref_beta")}
    if objective == "kto":
        preference |= {"desirable_weight": keys("kto_chosen_weight"), "undesirable_weight": keys("kto_rejected_weight")}
    return {"objective": objective, "preference": preference}


def _write_objective(config: RunConfig) -> dict[str, Any]:
    settings: dict[str, Any] = {"stage": WRITTEN_STAGES[config.objective]}
    preference = config.preference
    if preference is None or config.objective == "reward":
        return settings
    settings["pref_beta"] = preference.beta
    if config.objective == "kto":
        return settings | {
            "kto_chosen_weight": preference.desirable_weight,
            "kto_rejected_weight": preference.undesirable_weight,
        }
    return settings | {"pref_loss": next(name for name, objective in LOSSES.items() if objective == config.objective)}


def _evaluation_share(keys: Keys) -> float:
    if not evaluates(keys) or not (keys("val_size") or keys("eval_dataset")):
        return 0.0
    size = float(keys("val_size") or 0)
    return size if 0 < size < 1 else HELD_OUT


def _traits(keys: Keys) -> dict[str, Any]:
    traits: dict[str, Any] = {"loss": "config", "fused": "liger", "float32_norms": bool(keys("upcast_layernorm"))}
    if keys("pure_bf16"):
        traits |= {"adapter_dtype": "bfloat16", "quantized_adapter_dtype": "bfloat16"}
    return traits
