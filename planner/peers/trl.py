"""The files of `trl sft|dpo|kto|reward --config FILE`. Which of the four is meant is not in the file."""

from typing import Any

from planner.config.run_config import Objective, RunConfig
from planner.peers.keys import Keys
from planner.peers.reading import HELD_OUT, Reading, data_knobs
from planner.peers.training_arguments import arguments, checkpointing, evaluates, write_arguments, write_checkpointing
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.peer_keys import find_peer

DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16", "auto": "bfloat16"}
ATTENTION = {
    None: "sdpa",
    "sdpa": "sdpa",
    "eager": "eager",
    "flash_attention_2": "flash_attention_2",
    "kernels-community/flash-attn2": "flash_attention_2",
}

COMMANDS: dict[Objective, str] = {"sft": "sft", "dpo": "dpo", "ipo": "dpo", "kto": "kto", "reward": "reward"}
"""The command for each objective; ORPO has none in TRL 1.16, only a Python class."""

OTHERWISE = "a script can: --to script"

ONLY_DPO = ("loss_weights", "f_divergence_type", "sync_ref_model", "precompute_ref_log_probs", "beta")


def read(keys: Keys, model: ModelProfile | None, gpu: GpuProfile | None) -> Reading:
    """A run of TRL's trainer."""
    knobs = arguments(keys) | checkpointing(keys) | _objective(keys) | _method(keys, model)
    # TRL trains in bfloat16 unless the file says no or fp16, on any card.
    if keys.given("bf16") is None and not keys("fp16"):
        knobs["mixed_precision"] = "bf16"
    share = (keys("test_split_size") or HELD_OUT) if evaluates(keys) else 0.0
    return Reading(
        knobs
        | {
            "model": keys("model_name_or_path"),
            "trust_remote_code": bool(keys("trust_remote_code")),
            "dtype": keys.choice("dtype", DTYPES),
            "attn_implementation": keys.choice("attn_implementation", ATTENTION),
            "max_length": int(keys("max_length")),
            "packing": bool(keys("packing")),
            "padding_free": bool(keys("padding_free")),
            "data": data_knobs(_path(keys), share),
        }
    )


def write(config: RunConfig) -> dict[str, Any]:
    """The settings of `config`, but for the data."""
    settings = {
        "model_name_or_path": config.model,
        "trust_remote_code": config.trust_remote_code,
        "dtype": config.dtype,
        "attn_implementation": config.attn_implementation,
        **_write_method(config),
        "max_length": config.max_length,
        **_write_objective(config),
        **write_arguments(config),
        **write_checkpointing(config),
    }
    if config.data is not None and config.data.eval_fraction:
        settings["test_split_size"] = config.data.eval_fraction
    return settings | ({"use_cpu": True} if config.gpu is None else {})


def refusal(config: RunConfig) -> ConfigError | None:
    """Why `config` cannot be said to TRL's command line, or would go wrong there."""
    if config.objective not in COMMANDS:
        return ConfigError(f"objective is {config.objective}, for which TRL 1.16 has no command", hint=OTHERWISE)
    if config.method == "peft":
        return ConfigError("method is peft, but TRL's command line has LoRA only", hint=OTHERWISE)
    if config.lora is not None and config.lora.init_lora_weights is not True:
        return ConfigError(
            f"lora.init_lora_weights is {config.lora.init_lora_weights}, for which TRL's command line has no key",
            hint=OTHERWISE,
        )
    if config.quantization and config.mixed_precision == "fp16":
        return ConfigError(
            "a quantized base with fp16 stops at the first step in TRL 1.16: it casts the adapter to bfloat16, whose "
            "gradients the loss scaler cannot unscale",
            hint=OTHERWISE,
        )
    return None


def _path(keys: Keys) -> str | None:
    datasets = keys("datasets")
    if isinstance(datasets, list) and datasets and isinstance(datasets[0], dict):
        return str(datasets[0].get("data_files") or datasets[0].get("path"))
    return str(keys("dataset_name")) if keys("dataset_name") else None


def _objective(keys: Keys) -> dict[str, Any]:
    """What is learned, as far as keys tell that only one of the commands takes."""
    losses = keys("loss_type") if isinstance(keys("loss_type"), list) else [keys("loss_type")]
    objective: Objective = "sft"
    if losses == ["ipo"]:
        objective = "ipo"
    elif keys.given("desirable_weight") or keys.given("undesirable_weight") or losses == ["kto"]:
        objective = "kto"
    elif keys.given("center_rewards_coefficient"):
        objective = "reward"
    elif any(keys.given(key) for key in ONLY_DPO) or losses == ["sigmoid"]:
        objective = "dpo"
    if losses not in ([None], ["nll"], ["sigmoid"], ["ipo"], ["kto"]):
        keys.leave_out("loss_type", "another loss than nll, sigmoid, ipo and kto", "more")
    keys.remarks.append(f"its keys are those of `trl {COMMANDS[objective]}`; --objective says otherwise")
    if objective == "sft":
        return {"objective": objective}
    preference = {"center_rewards_coefficient": keys("center_rewards_coefficient") or None}
    if objective != "reward":
        preference = {
            "beta": keys("beta"),
            "precompute_ref_log_probs": bool(keys("precompute_ref_log_probs")),
        }
    if objective == "kto":
        preference |= {name: keys(name) for name in ("desirable_weight", "undesirable_weight")}
    return {"objective": objective, "preference": preference}


def _write_objective(config: RunConfig) -> dict[str, Any]:
    preference = config.preference
    if preference is None:
        return {"packing": config.packing, "padding_free": config.padding_free}
    if config.objective == "reward":
        # Zero is TRL's way to say the same, and shows that the file is one of `trl reward`.
        return {"center_rewards_coefficient": preference.center_rewards_coefficient or 0.0}
    settings = {"beta": preference.beta, "precompute_ref_log_probs": preference.precompute_ref_log_probs}
    if config.objective == "kto":
        return settings | {
            "loss_type": "kto",
            "desirable_weight": preference.desirable_weight,
            "undesirable_weight": preference.undesirable_weight,
        }
    return settings | {"loss_type": "ipo" if config.objective == "ipo" else "sigmoid"}


def _method(keys: Keys, model: ModelProfile | None) -> dict[str, Any]:
    bits = 8 if keys("load_in_8bit") else 4 if keys("load_in_4bit") else None
    if not keys("use_peft"):
        if bits:
            raise keys.refuse(
                f"load_in_{bits}bit", "a quantized base is only trained below an adapter", "use_peft: true"
            )
        return {"method": "full"}
    targets = keys("lora_target_modules") or _usual_targets(keys, model)
    words = targets if isinstance(targets, list) else [targets]
    quantization = {8: "int8", 4: keys.choice("bnb_4bit_quant_type", {"nf4": "nf4", "fp4": "fp4"}), None: None}[bits]
    return {
        "method": "qlora" if bits else "lora",
        "quantization": quantization,
        "double_quant": bool(keys("use_bnb_nested_quant")),
        "lora": {
            "r": keys("lora_r"),
            "lora_alpha": keys("lora_alpha"),
            "lora_dropout": keys("lora_dropout"),
            "target_modules": "all-linear" if words == ["all-linear"] else words,
            "use_rslora": bool(keys("use_rslora")),
            "use_dora": bool(keys("use_dora")),
        },
    }


def _usual_targets(keys: Keys, model: ModelProfile | None) -> list[str]:
    """The modules that PEFT takes for this type of model when none are named."""
    known = find_peer("trl").lora_targets
    if model is None or model.model_type not in known:
        raise keys.refuse("lora_target_modules", "which modules PEFT then takes is not known here", "write all-linear")
    keys.remarks.append(f"lora_target_modules is not given; PEFT takes {', '.join(known[model.model_type])}")
    return list(known[model.model_type])


def _write_method(config: RunConfig) -> dict[str, Any]:
    if config.lora is None:
        return {"use_peft": False}
    targets = config.lora.target_modules
    settings: dict[str, Any] = {
        "use_peft": True,
        "lora_r": config.lora.r,
        "lora_alpha": config.lora.lora_alpha,
        "lora_dropout": config.lora.lora_dropout,
        "lora_target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": config.lora.use_rslora,
        "use_dora": config.lora.use_dora,
    }
    if config.quantization == "int8":
        return settings | {"load_in_8bit": True}
    if config.quantization:
        settings |= {"load_in_4bit": True, "bnb_4bit_quant_type": config.quantization}
        settings |= {"use_bnb_nested_quant": config.double_quant}
    return settings
