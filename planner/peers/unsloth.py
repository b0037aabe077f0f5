"""The files of `unsloth train -c FILE`: supervised fine-tuning, with LoRA or whole.

Optimizer, schedule and precision are not in the file; Unsloth chooses them (`profiles/peers/unsloth.toml`).
"""

from typing import Any

from planner.config.run_config import RunConfig
from planner.peers.keys import Keys
from planner.peers.reading import Reading, counted, data_knobs
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

SECTIONS = ("data", "training", "lora", "logging")

OPTIMIZER, SCHEDULE = "adamw_8bit", "linear"

SHORT = 512
"""Rows below this length keep their checkpoints on the card."""


def read(keys: Keys, model: ModelProfile | None, gpu: GpuProfile | None) -> Reading:
    """A run of Unsloth's trainer."""
    length = int(keys("training.max_seq_length"))
    rows = int(keys("training.batch_size"))
    way = str(keys("training.gradient_checkpointing")).lower()
    checkpoints = way not in ("none", "false", "0", "no", "off")
    adapter = str(keys("training.training_type")).lower() == "lora"
    sixteen = gpu is None or gpu.supports_bf16
    knobs = {
        "model": keys("model"),
        **(_adapter(keys) if adapter else {"method": "full"}),
        "dtype": "bfloat16" if sixteen else "float16" if adapter else "float32",
        "mixed_precision": "bf16" if sixteen else "fp16",
        "max_length": length,
        "packing": bool(keys("training.packing")),
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "gradient_accumulation_steps": int(keys("training.gradient_accumulation_steps")),
        "gradient_checkpointing": checkpoints,
        "checkpoint_offload": checkpoints and way == "unsloth" and length >= SHORT,
        "optim": OPTIMIZER,
        "lr_scheduler_type": SCHEDULE,
        "learning_rate": keys("training.learning_rate"),
        "warmup_steps": counted(keys("training.warmup_steps")) or 0,
        "weight_decay": keys("training.weight_decay"),
        "num_train_epochs": keys("training.num_epochs"),
        "max_steps": counted(keys("training.max_steps")),
        "seed": keys("training.random_seed"),
        "output_dir": str(keys("training.output_dir")),
        "save_steps": counted(keys("training.save_steps")) or 200,
        "data": data_knobs(_path(keys), 0.0),
    }
    keys.remarks.append("Unsloth's own kernels keep fewer tensors than are counted; the estimate is high by them")
    return Reading(knobs)


def write(config: RunConfig) -> dict[str, Any]:
    """The settings of `config`, but for the data."""
    way = "none" if not config.gradient_checkpointing else "unsloth" if config.checkpoint_offload else "true"
    settings: dict[str, Any] = {
        "model": config.model,
        "training.training_type": "full" if config.method == "full" else "lora",
        "training.max_seq_length": config.max_length,
        "training.load_in_4bit": config.quantization is not None,
        "training.output_dir": config.output_dir,
        "training.num_epochs": int(config.num_train_epochs),
        "training.learning_rate": config.learning_rate,
        "training.batch_size": config.per_device_train_batch_size,
        "training.gradient_accumulation_steps": config.gradient_accumulation_steps,
        "training.warmup_steps": config.warmup_steps,
        "training.max_steps": config.max_steps or 0,
        "training.save_steps": config.save_steps,
        "training.weight_decay": config.weight_decay,
        "training.random_seed": config.seed,
        "training.packing": config.packing,
        "training.gradient_checkpointing": way,
    }
    if config.lora is not None:
        targets = config.lora.target_modules
        settings |= {
            "lora.lora_r": config.lora.r,
            "lora.lora_alpha": config.lora.lora_alpha,
            "lora.lora_dropout": config.lora.lora_dropout,
            "lora.target_modules": targets if isinstance(targets, str) else ",".join(targets),
            "lora.use_rslora": config.lora.use_rslora,
            "lora.use_dora": config.lora.use_dora,
        }
    trackers = {"wandb": "logging.enable_wandb", "tensorboard": "logging.enable_tensorboard"}
    return settings | {trackers[name]: True for name in config.report_to if name in trackers}


def refusal(config: RunConfig) -> ConfigError | None:
    """Why `config` cannot be said to Unsloth's command line."""
    lora = config.lora
    begins = lora.init_lora_weights if lora else True
    epochs = config.num_train_epochs
    rules: tuple[tuple[str, object, bool, str], ...] = (
        ("objective", config.objective, config.objective == "sft", "it learns answers only, sft"),
        ("method", config.method, config.method != "peft", "it has LoRA and full fine-tuning"),
        ("quantization", config.quantization, config.quantization in (None, "nf4"), "it has nf4"),
        ("double_quant", False, config.double_quant or not config.quantization, "it always quantizes twice"),
        ("optim", config.optim, config.optim == OPTIMIZER, f"it always takes {OPTIMIZER}"),
        ("padding_free", True, not config.padding_free, "it has packing"),
        ("attn_implementation", config.attn_implementation, config.attn_implementation == "sdpa", "it has its own"),
        ("loss", config.loss, config.loss == "fused", "its loss is always fused"),
        ("dtype", config.dtype, _usual_dtype(config), "it chooses 16 bit by the card"),
        ("trust_remote_code", True, not config.trust_remote_code, "it has no such key"),
        ("num_train_epochs", epochs, epochs == int(epochs), "it counts whole ones"),
        ("lora.init_lora_weights", begins, begins is True, "it begins as PEFT does"),
        ("data.eval_fraction", "set", not (config.data and config.data.eval_fraction), "it does not evaluate"),
        (
            "checkpoint_every_n_layers",
            config.checkpoint_every_n_layers,
            config.checkpoint_every_n_layers == 1,
            "it checkpoints each layer or none",
        ),
        (
            "checkpoint_offload",
            config.checkpoint_offload,
            not config.checkpoint_offload or config.max_length >= SHORT,
            f"rows below {SHORT} tokens keep theirs on the card",
        ),
    )
    for name, value, fine, rule in rules:
        if not fine:
            return ConfigError(
                f"{name} is {value}, which Unsloth's command line cannot say: {rule}",
                hint="change it, or export --to script",
            )
    return None


def _usual_dtype(config: RunConfig) -> bool:
    wanted = {"bf16": ("bfloat16",), "fp16": ("float32",) if config.method == "full" else ("float16",), "no": ()}
    return config.dtype in wanted[config.mixed_precision]


def _adapter(keys: Keys) -> dict[str, Any]:
    words = [word.strip() for word in str(keys("lora.target_modules")).split(",") if word.strip()]
    four = bool(keys("training.load_in_4bit"))
    return {
        "method": "qlora" if four else "lora",
        "quantization": "nf4" if four else None,
        "lora": {
            "r": keys("lora.lora_r"),
            "lora_alpha": keys("lora.lora_alpha"),
            "lora_dropout": keys("lora.lora_dropout"),
            "target_modules": "all-linear" if words == ["all-linear"] else words,
            "use_rslora": bool(keys("lora.use_rslora")),
            "use_dora": bool(keys("lora.use_dora")),
        },
    }


def _path(keys: Keys) -> str | None:
    files = keys("data.local_dataset")
    return str(files[0]) if files else keys("data.dataset")
