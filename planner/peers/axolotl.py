"""Axolotl's files. Source of what keys do: axolotl 0.19.0 (`profiles/peers/axolotl.toml`)."""

from typing import Any

from planner.config.run_config import Objective, RunConfig
from planner.peers.keys import Keys
from planner.peers.reading import HELD_OUT, Reading, counted, data_knobs, optimizer, schedule
from planner.peers.training_arguments import CHECKPOINTS
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

LIGER = "axolotl.integrations.liger.LigerPlugin"
CUT_CROSS_ENTROPY = "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"

ATTENTION = {None: "sdpa", "sdpa": "sdpa", "eager": "eager", "flash_attention_2": "flash_attention_2"}
FLAGS = {"flash_attention": "flash_attention_2", "sdp_attention": "sdpa", "eager_attention": "eager"}
"""Older keys of attention, the strongest first."""

OBJECTIVES: dict[str | None, Objective] = {None: "sft", "dpo": "dpo", "ipo": "ipo", "orpo": "orpo", "kto": "kto"}
PEFT_INITS = (None, True, False, "gaussian", "olora", "orthogonal", "pissa")


def read(keys: Keys, model: ModelProfile | None, gpu: GpuProfile | None) -> Reading:
    """A run of Axolotl's trainer: the plain Trainer with a way to the loss of its own, or TRL's for preferences."""
    method = _method(keys)
    rows = int(keys("micro_batch_size"))
    share = _evaluation_share(keys)
    knobs = {
        "model": keys("base_model"),
        "trust_remote_code": bool(keys("trust_remote_code")),
        **method,
        **_precision(keys),
        **_objective(keys),
        **_checkpointing(keys),
        "attn_implementation": _attention(keys),
        "loss": "fused" if _fuses_loss(keys) or _objective(keys)["objective"] in ("dpo", "ipo", "kto") else "full",
        "max_length": int(keys("sequence_len")),
        "packing": bool(keys("sample_packing")),
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": int(keys("eval_batch_size") or rows) if share else rows,
        "gradient_accumulation_steps": _accumulation(keys, rows),
        "optim": optimizer(keys, "optimizer"),
        "learning_rate": keys("learning_rate"),
        "lr_scheduler_type": schedule(keys("lr_scheduler")),
        "warmup_steps": counted(keys("warmup_steps")) or 0,
        "weight_decay": keys("weight_decay"),
        "max_grad_norm": keys("max_grad_norm") or 1.0,
        "num_train_epochs": keys("num_epochs"),
        "max_steps": counted(keys("max_steps")),
        "seed": keys("seed"),
        "output_dir": keys("output_dir"),
        "logging_steps": counted(keys("logging_steps")) or 1,
        "save_steps": counted(keys("save_steps")) or 1,
        "save_total_limit": keys("save_total_limit"),
        "eval_steps": counted(keys("eval_steps")),
        "data": data_knobs(_path(keys), share),
    }
    _remark(keys, method)
    return Reading(knobs, {"loss": "config", "fused": "liger", "float32_norms": bool(keys("fp32_norms"))})


def write(config: RunConfig) -> dict[str, Any]:
    """The settings of `config`, but for the data."""
    settings = {
        "base_model": config.model,
        **({"trust_remote_code": True} if config.trust_remote_code else {}),
        **_write_method(config),
        **_write_objective(config),
        "sequence_len": config.max_length,
        **({"sample_packing": config.packing} if config.objective == "sft" else {}),
        "val_set_size": config.data.eval_fraction if config.data else 0.0,
        "micro_batch_size": config.per_device_train_batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        **_write_precision(config),
        "tf32": config.mixed_precision == "bf16",
        **_write_checkpointing(config),
        "attn_implementation": config.attn_implementation,
        **_write_loss(config),
        "optimizer": config.optim,
        "learning_rate": config.learning_rate,
        "lr_scheduler": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "num_epochs": config.num_train_epochs,
        "max_steps": config.max_steps,
        "seed": config.seed,
        "output_dir": config.output_dir,
        "logging_steps": config.logging_steps,
        "save_steps": config.save_steps,
        "save_total_limit": config.save_total_limit,
        **_write_evaluation(config),
        **{f"use_{tracker}": True for tracker in config.report_to},
    }
    return {key: value for key, value in settings.items() if value is not None}


def refusal(config: RunConfig) -> ConfigError | None:
    """Why `config` cannot be said to Axolotl, or would go wrong there."""
    if config.method == "peft":
        return ConfigError("method is peft, but Axolotl's adapters are LoRA", hint="a script has them all: --to script")
    if config.objective in ("orpo", "reward"):
        return ConfigError(
            f"objective is {config.objective}, for which Axolotl reads rows of other columns than a run file's",
            hint="export --to trl, llama-factory or script",
        )
    if config.padding_free:
        return ConfigError("padding_free is true, for which Axolotl 0.19 has no key", hint="set packing instead")
    if config.packing and config.attn_implementation != "flash_attention_2":
        return ConfigError(
            f"packing with {config.attn_implementation} attention mixes documents in Axolotl 0.19",
            hint="set packing to false, or attn_implementation to flash_attention_2",
        )
    if config.dtype == "float32" and config.mixed_precision != "no":
        return ConfigError(
            f"dtype is float32 with mixed_precision {config.mixed_precision}, but Axolotl loads weights in the 16-bit "
            "format that it computes in",
            hint="set dtype to bfloat16, or export --to trl or script",
        )
    if config.dtype == "bfloat16" and config.mixed_precision == "no":
        return ConfigError(
            "mixed_precision is no with bfloat16 weights, but Axolotl 0.19 always puts bf16 autocast around those",
            hint="set mixed_precision to bf16, or export --to trl or script",
        )
    if config.quantization == "int8" and config.dtype == "float32":
        return ConfigError("quantization int8 in Axolotl is with float16 or bfloat16", hint="set dtype to bfloat16")
    if config.lora is not None and config.lora.init_lora_weights not in PEFT_INITS:
        return ConfigError(
            f"lora.init_lora_weights is {config.lora.init_lora_weights}, which is not known of Axolotl", hint="use true"
        )
    return None


def _method(keys: Keys) -> dict[str, Any]:
    eight, four = bool(keys("load_in_8bit")), bool(keys("load_in_4bit"))
    adapter = keys.choice("adapter", {None: None, "lora": "lora", "qlora": "qlora"})
    if adapter is None:
        if eight or four:
            raise keys.refuse("adapter", "a quantized base is only trained below an adapter", "adapter: qlora")
        return {"method": "full"}
    if adapter == "qlora" and not four:
        raise keys.refuse("adapter", "it needs load_in_4bit: true", "or write adapter: lora")
    options = keys("bnb_config_kwargs") or {}
    double = bool(options.get("bnb_4bit_use_double_quant", True))
    quantization = options.get("bnb_4bit_quant_type", "nf4") if four else "int8" if eight else None
    return {
        "method": "qlora" if quantization else "lora",
        "quantization": quantization,
        "double_quant": double,
        "lora": {
            "r": keys("lora_r") or 8,
            "lora_alpha": keys("lora_alpha") or 8,
            "lora_dropout": keys("lora_dropout"),
            "target_modules": _targets(keys),
            "use_rslora": bool(keys("peft_use_rslora")),
            "use_dora": bool(keys("peft_use_dora")),
            "init_lora_weights": _initial(keys),
        },
    }


def _targets(keys: Keys) -> str | list[str]:
    """`lora_target_linear` adds each Linear module to those that are named."""
    if keys("lora_target_linear"):
        return "all-linear"
    targets = keys("lora_target_modules")
    if not targets:
        raise keys.refuse("lora_target_modules", "an adapter needs modules", "write lora_target_linear: true")
    words = [targets] if isinstance(targets, str) else list(targets)
    return "all-linear" if words == ["all-linear"] else words


def _initial(keys: Keys) -> str | bool:
    initial = keys("peft_init_lora_weights")
    if initial not in PEFT_INITS:
        keys.leave_out("peft_init_lora_weights", "another beginning of the adapter")
        return True
    return True if initial is None else initial


def _write_method(config: RunConfig) -> dict[str, Any]:
    if config.lora is None:
        return {}
    lora, targets = config.lora, config.lora.target_modules
    settings: dict[str, Any] = {"adapter": "qlora" if config.quantization in ("nf4", "fp4") else "lora"}
    if config.quantization == "int8":
        settings["load_in_8bit"] = True
    elif config.quantization:
        settings["load_in_4bit"] = True
        unusual: dict[str, Any] = {"bnb_4bit_quant_type": config.quantization} if config.quantization != "nf4" else {}
        unusual |= {} if config.double_quant else {"bnb_4bit_use_double_quant": False}
        settings |= {"bnb_config_kwargs": unusual} if unusual else {}
    settings |= {"lora_r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
    settings |= {"lora_target_linear": True} if targets == "all-linear" else {"lora_target_modules": list(targets)}
    settings |= {"peft_use_rslora": True} if lora.use_rslora else {}
    settings |= {"peft_use_dora": True} if lora.use_dora else {}
    settings |= {"peft_init_lora_weights": lora.init_lora_weights} if lora.init_lora_weights is not True else {}
    return settings


def _precision(keys: Keys) -> dict[str, str]:
    """`bf16: auto` is bfloat16 on every card: torch says that older ones have it, too, and emulates it."""
    bf16, fp16 = keys("bf16"), keys("fp16")
    if (bf16 and not (fp16 and bf16 == "auto")) or keys("bfloat16"):
        return {"dtype": "bfloat16", "mixed_precision": "bf16"}
    if fp16:
        return {"dtype": "float16", "mixed_precision": "fp16"}
    return {"dtype": "float16" if keys("float16") or keys("load_in_8bit") else "float32", "mixed_precision": "no"}


def _write_precision(config: RunConfig) -> dict[str, Any]:
    if config.mixed_precision == "bf16":
        return {"bf16": True}
    if config.mixed_precision == "fp16":
        return {"bf16": False, "fp16": True}
    return {"bf16": False, "fp16": False, config.dtype: True}


def _attention(keys: Keys) -> str:
    given = keys.given("attn_implementation")
    if given in FLAGS:
        return next((code for flag, code in FLAGS.items() if keys.given(flag) and keys(flag)), "sdpa")
    code: str = keys.choice("attn_implementation", ATTENTION)
    return code


def _checkpointing(keys: Keys) -> dict[str, Any]:
    mode, offload = keys("gradient_checkpointing"), keys("activation_offloading")
    options = keys("gradient_checkpointing_kwargs") or {}
    if mode in ("offload", "offload_disk") or offload not in (False, "hidden_states"):
        name = "activation_offloading" if keys.given("activation_offloading") else "gradient_checkpointing"
        keys.leave_out(name, "all stored activations wait in host memory; counted as checkpoints there", "either")
    if unknown := options.keys() - CHECKPOINTS:
        keys.leave_out("gradient_checkpointing_kwargs", f"options of checkpointing: {', '.join(sorted(unknown))}")
    on = bool(mode)
    return {
        "gradient_checkpointing": on,
        "checkpoint_every_n_layers": int(options.get("every_n_layers", 1)) if on else 1,
        "checkpoint_offload": on and bool(offload or mode in ("offload", "offload_disk") or options.get("offload")),
    }


def _write_checkpointing(config: RunConfig) -> dict[str, Any]:
    if not config.gradient_checkpointing:
        return {"gradient_checkpointing": False}
    settings: dict[str, Any] = {"gradient_checkpointing": True}
    if config.checkpoint_every_n_layers > 1:
        options = {"use_reentrant": False, "every_n_layers": config.checkpoint_every_n_layers}
        settings["gradient_checkpointing_kwargs"] = options
    return settings | ({"activation_offloading": "hidden_states"} if config.checkpoint_offload else {})


def _fuses_loss(keys: Keys) -> bool:
    """Whether logits are never whole: by one of two plugins, which must be loaded to have an effect."""
    plugins = keys("plugins") or []
    cut = CUT_CROSS_ENTROPY in plugins and keys("cut_cross_entropy") is not False
    liger = LIGER in plugins and bool(keys("liger_fused_linear_cross_entropy"))
    for key, plugin in (("cut_cross_entropy", CUT_CROSS_ENTROPY), ("liger_fused_linear_cross_entropy", LIGER)):
        if keys(key) and plugin not in plugins:
            keys.remarks.append(f"{key} has no effect without the plugin {plugin}")
    if others := [plugin for plugin in plugins if plugin not in (LIGER, CUT_CROSS_ENTROPY)]:
        keys.leave_out("plugins", f"what {', '.join(map(str, others))} changes")
    if keys("chunked_cross_entropy"):
        keys.leave_out("chunked_cross_entropy", "a loss in chunks; counted as one whole", "less")
    return cut or liger


def _write_loss(config: RunConfig) -> dict[str, Any]:
    if config.objective != "sft" or config.loss != "fused":
        return {}
    return {"plugins": [LIGER], "liger_fused_linear_cross_entropy": True}


def _objective(keys: Keys) -> dict[str, Any]:
    objective = "reward" if keys("reward_model") else keys.choice("rl", OBJECTIVES)
    if objective == "sft":
        return {"objective": "sft"}
    options = {
        "beta": keys("rl_beta"),
        "precompute_ref_log_probs": keys("precompute_ref_log_probs"),
        "desirable_weight": keys("kto_desirable_weight"),
        "undesirable_weight": keys("kto_undesirable_weight"),
        "center_rewards_coefficient": keys("center_rewards_coefficient"),
    }
    return {"objective": objective, "preference": {name: value for name, value in options.items() if value is not None}}


def _write_objective(config: RunConfig) -> dict[str, Any]:
    preference = config.preference
    if preference is None:
        return {}
    if config.objective == "reward":
        coefficient = preference.center_rewards_coefficient
        return {"reward_model": True} | ({"center_rewards_coefficient": coefficient} if coefficient else {})
    settings: dict[str, Any] = {"rl": config.objective, "rl_beta": preference.beta}
    if config.objective == "kto":
        settings |= {"kto_desirable_weight": preference.desirable_weight}
        settings |= {"kto_undesirable_weight": preference.undesirable_weight, "remove_unused_columns": False}
    return settings | ({"precompute_ref_log_probs": True} if preference.precompute_ref_log_probs else {})


def _evaluation_share(keys: Keys) -> float:
    """The share of rows that is held out, if there is any evaluation."""
    size = keys("val_set_size") or 0
    asked = keys("eval_steps") or keys("evals_per_epoch") or keys("eval_strategy") not in (None, "no")
    if not asked or not (size or keys("test_datasets")):
        return 0.0
    return float(size) if 0 < size < 1 else HELD_OUT


def _write_evaluation(config: RunConfig) -> dict[str, Any]:
    if config.data is None or not config.data.eval_fraction:
        return {}
    settings: dict[str, Any] = {"eval_steps": config.eval_steps} if config.eval_steps else {"evals_per_epoch": 1}
    settings["eval_batch_size"] = config.per_device_eval_batch_size
    settings |= {"load_best_model_at_end": True} if config.load_best_model_at_end else {}
    patience = config.early_stopping_patience
    return settings | ({"early_stopping_patience": patience} if patience else {})


def _accumulation(keys: Keys, rows: int) -> int:
    if keys.given("gradient_accumulation_steps") is None and keys.given("batch_size"):
        return max(1, int(keys("batch_size")) // rows)
    return int(keys("gradient_accumulation_steps"))


def _path(keys: Keys) -> str | None:
    datasets = keys("datasets") or []
    return str(datasets[0].get("path")) if datasets and isinstance(datasets[0], dict) else None


def _remark(keys: Keys, method: dict[str, Any]) -> None:
    """What Axolotl does by itself and the estimate does not know."""
    full = method["method"] == "full"
    if full and _attention(keys) != "flash_attention_2":
        keys.remarks.append(
            "without flash attention and adapter, Axolotl holds embeddings and norms in float32; they are counted in "
            "16 bit, so the estimate is low by their part"
        )
    kernels = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel")
    if not full and method["quantization"] != "int8" and not any(keys.given(kernel) for kernel in kernels):
        keys.remarks.append(
            "Axolotl may turn on LoRA kernels of its own here, which keep less than counted; the estimate is then high"
        )
