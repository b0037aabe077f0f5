"""A run as a Python program of its own on Transformers, PEFT and TRL, which trains what `fitune launch` trains."""

import json
from textwrap import indent
from typing import Any

from planner.config.chat_template import DEFAULT_TEMPLATE
from planner.config.run_config import Objective, RunConfig
from planner.peers.data import DataSource
from planner.peers.script_parts import (
    CONVERSIONS,
    FULL_LOGITS,
    LONGEST_FIRST,
    MAIN,
    PADDING_FREE,
    READ_ROWS,
    REFERENCE,
    SPLIT_LAST_ANSWER,
)
from planner.peers.training_arguments import write_arguments, write_checkpointing
from profiles.errors import ConfigError

TRAINERS: dict[Objective, tuple[str, str, str]] = {
    "sft": ("trl", "SFTConfig", "SFTTrainer"),
    "dpo": ("trl", "DPOConfig", "DPOTrainer"),
    "ipo": ("trl", "DPOConfig", "DPOTrainer"),
    "kto": ("trl", "KTOConfig", "KTOTrainer"),
    "orpo": ("trl.experimental.orpo", "ORPOConfig", "ORPOTrainer"),
    "reward": ("trl", "RewardConfig", "RewardTrainer"),
}
"""Where the trainer of each objective is in TRL 1.16."""

COMPUTE = {"bf16": "bfloat16", "fp16": "float16"}


def refusal(config: RunConfig) -> ConfigError | None:
    """Why a script of one file cannot train `config`."""
    if config.max_target_length is not None:
        return ConfigError("max_target_length is for encoder-decoders, which scripts leave out", hint="launch it")
    return None


def write_script(config: RunConfig, source: DataSource, header: str) -> str:
    """The program that trains `config` on the rows of `source`, below a `header` for its docstring."""
    parts = [
        f'"""{header}"""\n',
        _imports(config, source),
        _constants(config, source),
        READ_ROWS.replace("LOADER", _code(source.loader)),
        CONVERSIONS[source.format],
    ]
    if source.in_turns and source.format in ("messages", "sharegpt", "alpaca", "prompt-completion"):
        parts.append(SPLIT_LAST_ANSWER)
    if config.objective == "sft" and config.loss == "full":
        parts.append(FULL_LOGITS)
    if config.objective != "kto":
        parts.append(LONGEST_FIRST)
    parts += [_settings(config), _model(config), _main(config, source)]
    head, *body = [part.strip("\n") + "\n" for part in parts]
    return head + "\n" + "\n\n".join(body)


def _imports(config: RunConfig, source: DataSource) -> str:
    module, settings, trainer = TRAINERS[config.objective]
    classes = ["AutoTokenizer", _model_class(config), "set_seed"]
    classes += ["BitsAndBytesConfig"] if config.quantization else []
    classes += ["Trainer"] if _full_logits(config) else []
    lines = ["import copy"] if _copies_reference(config) else []
    lines += ["import os"] if config.num_gpus > 1 and config.gpu is not None else []
    lines += ["from pathlib import Path", "", "import torch", "from datasets import load_dataset"]
    if config.method != "full":
        lines.append("from peft import get_peft_config, get_peft_model" if config.peft else PEFT_IMPORT)
    lines.append(f"from transformers import {', '.join(sorted(classes))}")
    lines.append(f"from {module} import {settings}, {trainer}")
    if source.in_turns and config.objective == "sft":
        lines.append(TEMPLATE_IMPORT)
    if config.padding_free:
        lines.append("from trl.trainer.sft_trainer import DataCollatorForLanguageModeling")
    return "\n".join(lines)


PEFT_IMPORT = "from peft import LoraConfig, get_peft_model"
TEMPLATE_IMPORT = """from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)"""


def _constants(config: RunConfig, source: DataSource) -> str:
    assert config.data is not None
    lines = [
        f"MODEL = {_code(config.model)}",
        f"DATA = {_code(source.path)}",
        f"OUTPUT = Path({_code(config.output_dir)})",
        f"HELD_OUT = {config.data.eval_fraction}  # share of the rows to evaluate on",
        _device(config),
    ]
    return "\n".join(lines) + (_chat_template() if source.in_turns else "")


def _device(config: RunConfig) -> str:
    """Where the model is loaded; of several cards each process has the one of its number."""
    if config.gpu is None:
        return 'DEVICE = "cpu"'
    return 'DEVICE = int(os.environ.get("LOCAL_RANK", 0))' if config.num_gpus > 1 else 'DEVICE = "cuda"'


def _chat_template() -> str:
    """The template for a model that has none, as a constant of the script."""
    text = DEFAULT_TEMPLATE.replace("\\", "\\\\")
    return f'\n\n# For a model that has no template of its own.\nCHAT_TEMPLATE = """\\\n{text}"""'


def _settings(config: RunConfig) -> str:
    """The function that makes the settings of TRL."""
    _, settings, _ = TRAINERS[config.objective]
    values = write_arguments(config) | write_checkpointing(config) | {"use_cpu": config.gpu is None}
    values.pop("do_eval", None)
    values |= {"output_dir": "OUTPUT", "max_length": config.max_length, "data_seed": config.seed}
    values |= _objective_settings(config)
    shown = {name: value for name, value in values.items() if name != "output_dir"}
    body = "".join(f"        {name}={_code(value)},\n" for name, value in shown.items())
    extra = "        **more,\n"
    return (
        f"def settings(**more) -> {settings}:\n"
        f'    """Everything that matters is stated; nothing is left to a default."""\n'
        f"    return {settings}(\n        output_dir=str(OUTPUT),\n{body}{extra}    )"
    )


def _objective_settings(config: RunConfig) -> dict[str, Any]:
    preference = config.preference
    if preference is None:
        return {"packing": config.packing, "packing_strategy": "bfd", "eval_packing": config.packing}
    match config.objective:
        case "reward":
            return {"center_rewards_coefficient": preference.center_rewards_coefficient, "disable_dropout": True}
        case "orpo":
            return {"beta": preference.beta, "disable_dropout": True}
    shared: dict[str, Any] = {
        "beta": preference.beta,
        "precompute_ref_log_probs": preference.precompute_ref_log_probs,
        "precompute_ref_batch_size": config.per_device_train_batch_size,
        "disable_dropout": True,
    }
    if config.objective == "kto":
        weights = {name: getattr(preference, name) for name in ("desirable_weight", "undesirable_weight")}
        return shared | weights | {"loss_type": "kto", "train_sampling_strategy": "sequential"}
    return shared | {"loss_type": ["ipo" if config.objective == "ipo" else "sigmoid"], "truncation_mode": "keep_start"}


def _model(config: RunConfig) -> str:
    """The function that loads the base and puts the adapter on it."""
    lines = [
        "def load_model():",
        f"    model = {_model_class(config)}.from_pretrained(",
        "        MODEL,",
        f"        dtype=torch.{config.dtype},",
        f"        attn_implementation={_code(config.attn_implementation)},",
        *_quantization(config),
        '        device_map={"": DEVICE},',
        f"        trust_remote_code={config.trust_remote_code},",
        *(["        num_labels=1,"] if config.objective == "reward" else []),
        "    )",
        "    model.config.use_cache = False",
    ]
    if config.lora is not None:
        lines += ["    adapter = LoraConfig(", f"        task_type={_code(_task(config))},"]
        options = {name: list(v) if isinstance(v, tuple) else v for name, v in config.lora.model_dump().items()}
        lines += [f"        {name}={_code(value)}," for name, value in options.items()]
        lines += ["    )", "    model = get_peft_model(model, adapter)"]
    if config.peft is not None:
        options = {"peft_type": config.peft.type, "task_type": _task(config), **config.peft.options}
        lines += [f"    adapter = get_peft_config({_code(options)})", "    model = get_peft_model(model, adapter)"]
    return "\n".join([*lines, "    return model"])


def _quantization(config: RunConfig) -> list[str]:
    if config.quantization is None:
        return []
    if config.quantization == "int8":
        return ["        quantization_config=BitsAndBytesConfig(load_in_8bit=True),"]
    return [
        "        quantization_config=BitsAndBytesConfig(",
        "            load_in_4bit=True,",
        f"            bnb_4bit_quant_type={_code(config.quantization)},",
        f"            bnb_4bit_use_double_quant={config.double_quant},",
        f"            bnb_4bit_compute_dtype=torch.{COMPUTE.get(config.mixed_precision, config.dtype)},",
        "        ),",
    ]


def _main(config: RunConfig, source: DataSource) -> str:
    _, _, trainer = TRAINERS[config.objective]
    arguments = ["model=model", "args=settings(**more)", "train_dataset=train", "eval_dataset=evaluation"]
    arguments.append("processing_class=tokenizer")
    if config.objective in ("dpo", "ipo", "kto"):
        arguments.insert(1, f"ref_model={REFERENCE if _copies_reference(config) else None}")
    text = MAIN.replace("SEED", str(config.seed))
    text = text.replace("TRAINER", "FullLogitsTrainer" if _full_logits(config) else trainer)
    text = text.replace("ARGUMENTS", indent(",\n".join(arguments) + ",", " " * 8))
    text = text.replace("    PREPARE\n", indent(_preparation(config, source), "    "))
    text = text.replace("    PADDING\n", PADDING_FREE if config.padding_free else "")
    text = text.replace("    ORDER\n", ORDER.replace("SEED", str(config.seed)) if config.objective != "kto" else "")
    return text.replace("    CAST\n", CAST if config.method != "full" else "")


ORDER = """    order = LongestFirst(trainer.train_dataset, SEED)
    trainer._get_train_sampler = lambda *_: order
"""

CAST = """    # TRL casts the adapter of a quantized base to bfloat16; learning in float32 loses nothing.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
"""


def _preparation(config: RunConfig, source: DataSource) -> str:
    """What is done to the rows before they are split, and what TRL is told of them."""
    lines = ["rows = rows.map(example, remove_columns=rows.column_names)"]
    if source.in_turns:
        lines += ["if tokenizer.chat_template is None:", "    tokenizer.chat_template = CHAT_TEMPLATE"]
    if config.objective != "sft":
        return "\n".join([*lines, "more = {}"]) + "\n"
    if source.in_turns:
        lines += [
            "every_answer = marks_answers(tokenizer)",
            "if not every_answer:",
            "    rows = rows.map(split_last_answer, remove_columns=rows.column_names)",
            'more = {"assistant_only_loss": every_answer, "completion_only_loss": not every_answer}',
        ]
    else:
        only = source.format == "prompt-completion"
        lines.append(f'more = {{"assistant_only_loss": False, "completion_only_loss": {only}}}')
    return "\n".join(lines) + "\n"


def _code(value: object) -> str:
    """A value of a run file as Python code, strings in double quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_code, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_code(key)}: {_code(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def _model_class(config: RunConfig) -> str:
    return "AutoModelForSequenceClassification" if config.objective == "reward" else "AutoModelForCausalLM"


def _task(config: RunConfig) -> str:
    return "SEQ_CLS" if config.objective == "reward" else "CAUSAL_LM"


def _full_logits(config: RunConfig) -> bool:
    return config.objective == "sft" and config.loss == "full"


def _copies_reference(config: RunConfig) -> bool:
    """Whether a model that learns as a whole is copied to be its own reference."""
    asked_before = config.preference is not None and config.preference.precompute_ref_log_probs
    return config.objective in ("dpo", "ipo", "kto") and config.method == "full" and not asked_before
