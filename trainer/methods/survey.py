"""Which of PEFT's methods train on which base: each is tried for real, and the outcome is a file of facts.

`python -m trainer.methods.survey` trains every method of the installed PEFT on a model of two layers with every kind of
base, through the trainer that `fitune launch` runs, and writes `profiles/peft_methods.toml`. `--check` writes nothing
and fails if the file says something else.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import peft
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.console import Console
from rich.progress import track
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from trl import SFTTrainer

from planner.config.run_config import DataKnobs, LoraInit, PeftKnobs, RunConfig
from profiles.errors import FituneError
from profiles.peft_method import FACTS, Base, peft_facts
from trainer.methods.options import is_prompt_method, method_names, options_of
from trainer.methods.table import TABLE, methods_table
from trainer.model.adapter import first_line, make_peft_config
from trainer.model.build import load_architecture, load_model
from trainer.run import prepare, quiet_libraries
from trainer.tiny_model import write_tiny_model

ROW = {"prompt": "What is 3 plus 4?", "completion": " 3 plus 4 is 7."}
STEPS = 4
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}

BASES: dict[Base, dict[str, Any]] = {
    "float32": {"dtype": "float32", "quantization": None, "mixed_precision": "no"},
    "bfloat16": {"dtype": "bfloat16", "quantization": None, "mixed_precision": "bf16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8", "mixed_precision": "bf16"},
    "nf4": {"dtype": "bfloat16", "quantization": "nf4", "mixed_precision": "bf16"},
}

FALLBACKS: tuple[dict[str, bool | str], ...] = (
    {"loss": "full"},
    {"gradient_checkpointing": False},
)
"""Knobs to try in turn, until a method trains. Where none helps, the first one, Transformers' own loss, tells why."""

EXAMPLES: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 8, "target_r": 4},
    "ADAPTION_PROMPT": {"adapter_len": 8, "adapter_layers": 2},
    "C3A": {"block_size": 16},
    "CARTRIDGE": {"num_virtual_tokens": 8},
    "CPT": {"cpt_token_ids": [3, 4], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 1]},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 8},
    "PREFIX_TUNING": {"num_virtual_tokens": 8},
    "PROMPT_TUNING": {"num_virtual_tokens": 8},
    "P_TUNING": {"num_virtual_tokens": 8, "encoder_hidden_size": 64},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 8},
    "TRAINABLE_TOKENS": {"token_indices": [319, 262, 301, 285, 295, 33]},
    "VBLORA": {"num_vectors": 32, "vector_length": 16},
    "WAVEFT": {"n_frequency": 200},
}
"""Options of the trial, where a method cannot do without or its own do not suit 64 wide layers."""

LORA_VARIANTS: tuple[dict[str, Any], ...] = (
    {"use_rslora": True},
    {"use_dora": True},
    *({"init_lora_weights": way} for way in get_args(LoraInit) if way is not True),
)

NOISE = 0.03
"""Largest difference of two logits by rounding alone. They are around 1 here."""
REPACKED = 0.25
"""Largest part of an adapter's effect that may be lost where its start is packed into the base again, as by OLoRA.
Packed numbers that are taken for weights make a difference of several times the effect."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where trials run: a folder with the model, its data, and for each quantized base the same weights in float32.

    `base_logits` has what each base says without an adapter.
    """

    folder: Path
    base_logits: dict[str, torch.Tensor] = field(default_factory=dict)

    def config(self, base: Base, peft_knobs: Mapping[str, Any], **knobs: object) -> RunConfig:
        """A run of a few steps. It is not checked against the facts, which it is to find out."""
        values = {
            "model": str(self.folder / "model"),
            "data": DataKnobs.model_construct(path=str(self.folder / "data.jsonl"), format="auto", eval_fraction=0.0),
            "method": "peft",
            "peft": PeftKnobs.model_construct(**peft_knobs),
            "gradient_checkpointing": True,
            "max_length": 64,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "max_steps": STEPS,
            "logging_steps": 1,
            "optim": "adamw_torch",
            "output_dir": str(self.folder / "run"),
        }
        usual = RunConfig(model="any", method="full")
        return usual.model_copy(update={**values, **BASES[base], **knobs})


@contextmanager
def bench() -> Iterator[Bench]:
    """A folder with all that trials need, for as long as they run."""
    with tempfile.TemporaryDirectory() as folder, quiet_libraries():
        # What PEFT warns of is an outcome here, or none.
        warnings.simplefilter("ignore")
        made = Bench(Path(folder))
        write_tiny_model(made.folder / "model")
        shape = AutoConfig.from_pretrained(made.folder / "model")
        shape.update(SHAPE | {"head_dim": SHAPE["hidden_size"] // SHAPE["num_attention_heads"]})
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(made.folder / "model")
        (made.folder / "data.jsonl").write_text(2 * STEPS * (json.dumps(ROW) + "\n"), encoding="utf-8")
        for base in ("int8", "nf4"):
            _write_twin(made, base)
        yield made


def _write_twin(made: Bench, base: Base) -> None:
    """Write the weights that a quantized base stands for as a model that is not quantized."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    packed = _load(made.config(base, {}, dtype="float32", mixed_precision="no"))
    twin = _load(made.config("float32", {}))
    for name, module in packed.named_modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            twin.get_submodule(name).weight.data = dequantize_4bit(weight.data, weight.quant_state)
        elif type(weight).__name__ == "Int8Params":
            twin.get_submodule(name).weight.data = int8_vectorwise_dequant(weight.data, weight.SCB)
    twin.save_pretrained(made.folder / f"twin-{base}")


def outcome(made: Bench, method: str, options: Mapping[str, Any], base: Base) -> dict[str, Any]:
    """What becomes of training `method` on `base`, as `profiles.peft_method.Outcome` has it."""
    reasons = []
    for knobs in ({}, *FALLBACKS):
        reason = trial(made, made.config(base, {"type": method, **options}, **knobs), base)
        if reason is None:
            return {"works": True} | ({"needs": knobs} if knobs else {})
        reasons.append(reason)
    return {"works": False, "reason": reasons[1]}


def trial(made: Bench, config: RunConfig, base: Base) -> str | None:
    """Train `config` for a few steps, save the adapter and load it again; why that fails, None if it does not."""
    try:
        trainer = prepare(config, torch.device("cpu"), Console(quiet=True))
        trainer.train()
        if reason := _learns_nothing(trainer):
            return reason
        adapter = made.folder / "adapter"
        trainer.model.save_pretrained(adapter)
        if config.quantization and not _same_effect_on_twin(made, config, adapter, base):
            return "it reads the packed numbers of the base as if they were its weights"
        with torch.autocast("cpu", torch.bfloat16, enabled=config.mixed_precision == "bf16"):
            trained = _logits(trainer.model)
            reloaded = _logits(PeftModel.from_pretrained(_load(config), adapter))
        if _largest(reloaded - trained) > NOISE:
            return "the saved adapter, loaded again, computes something else"
    except FituneError as error:
        return (error.message.partition(": ")[2] or error.message).rstrip(".")
    except Exception as error:  # noqa: BLE001  # any way to fail is an outcome
        return first_line(error).rstrip(".")
    return None


def _learns_nothing(trainer: SFTTrainer) -> str | None:
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = torch.tensor([entry["loss"] for entry in log])
    if not losses.isfinite().all():
        return "the loss is not finite"
    if all(float(entry["grad_norm"]) == 0 for entry in log):
        return "no gradient reaches what should learn"
    return None if losses[-1] < losses[0] else "the loss does not fall"


def _same_effect_on_twin(made: Bench, config: RunConfig, adapter: Path, base: Base) -> bool:
    """Whether the adapter does to the quantized base what it does to the same weights in float32."""
    packed = config.model_copy(update={"dtype": "float32", "mixed_precision": "no"})
    plain = packed.model_copy(update={"quantization": None, "model": str(made.folder / f"twin-{base}")})
    effects = []
    for name, run in ((base, packed), (f"twin-{base}", plain)):
        if name not in made.base_logits:
            made.base_logits[name] = _logits(_load(run))
        effects.append(_logits(PeftModel.from_pretrained(_load(run), adapter)) - made.base_logits[name])
    on_packed, on_plain = effects
    return _largest(on_packed - on_plain) <= REPACKED * _largest(on_plain) + NOISE


def _largest(logits: torch.Tensor) -> float:
    return float(logits.abs().max())


def _load(config: RunConfig) -> PreTrainedModel:
    return load_model(config, load_architecture(config), torch.device("cpu"))


def _logits(model: torch.nn.Module) -> torch.Tensor:
    """Logits for some tokens: (1, seq_len, vocab_size), in float32, without those of a prompt that was put before."""
    tokens = torch.arange(50, 70)[None]
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return logits[:, -tokens.shape[1] :].float()


def method_facts(made: Bench, name: str) -> dict[str, Any]:
    """All that the file says of a method, tried on every base."""
    example = EXAMPLES.get(name, {})
    return {
        "trains": _what_trains(made, name, example),
        "required": _required(made, name, example),
        "example": example,
        "options": options_of(name),
        "resumes": resumes(made, made.config("float32", {"type": name, **example})),
        "bases": {base: outcome(made, name, example, base) for base in get_args(Base)},
    }


def resumes(made: Bench, config: RunConfig) -> bool:
    """Whether training that goes on from a checkpoint ends with the weights of training that was not interrupted.

    Knobs that a method needs are those that each method trains with: all layers kept, and Transformers' own loss.
    """
    half = {"save_steps": STEPS // 2, "gradient_checkpointing": False, "loss": "full"}
    ends = []
    for checkpoint in (None, str(made.folder / "run" / f"checkpoint-{STEPS // 2}")):
        try:
            trainer = prepare(config.model_copy(update=half), torch.device("cpu"), Console(quiet=True))
            trainer.train(resume_from_checkpoint=checkpoint)
        except Exception:  # noqa: BLE001  # whatever it stumbles over, it does not go on
            return False
        ends.append(_logits(trainer.model))
    return bool(torch.equal(*ends))


def _required(made: Bench, name: str, example: Mapping[str, Any]) -> list[str]:
    """Options of the example that have no default, and without which PEFT makes no adapter."""
    return [
        option
        for option in example
        if not options_of(name)[option].get("default")
        and not _wrapped(made, name, {other: value for other, value in example.items() if other != option})
    ]


def _wrapped(made: Bench, name: str, options: Mapping[str, Any]) -> PeftModel | None:
    """A model with an adapter that has something to learn; None if PEFT makes none."""
    base = _load(made.config("float32", {}))
    try:
        model = get_peft_model(base, make_peft_config(name, options, base))
    except Exception:  # noqa: BLE001  # whatever PEFT stumbles over, there is no adapter
        return None
    return model if any(weight.requires_grad and weight.numel() for weight in model.parameters()) else None


def _what_trains(made: Bench, name: str, example: Mapping[str, Any]) -> str:
    """The kind of modules that the method wraps by itself, or the prompt that it learns."""
    if is_prompt_method(name):
        return "prompt"
    model = _wrapped(made, name, example)
    if model is None:
        return "nothing"
    wrapped = [module.get_base_layer() for module in model.modules() if isinstance(module, BaseTunerLayer)]
    learning = [m for m in model.modules() if any(w.requires_grad for w in m.parameters(recurse=False))]
    return ", ".join(sorted({type(layer).__name__.removeprefix("Llama") for layer in wrapped or learning}))


def survey(made: Bench, names: Sequence[str]) -> dict[str, Any]:
    """The facts of `names` and of the variants of LoRA, as the file holds them."""
    return {
        "peft_version": peft.__version__,
        "source": f"python -m trainer.methods.survey: {STEPS} steps each on a CPU, {_versions()}",
        "lora_variants": [
            {"options": options, "bases": {base: outcome(made, "LORA", options, base) for base in get_args(Base)}}
            for options in track(LORA_VARIANTS, "LoRA variants", console=Console(stderr=True))
        ],
        "methods": {name: method_facts(made, name) for name in track(names, "methods", console=Console(stderr=True))},
    }


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "bitsandbytes"))


def as_toml(facts: Mapping[str, Any]) -> str:
    """The facts as a file, in the order in which they are given."""
    head = [f"{name} = {json.dumps(facts[name])}" for name in ("peft_version", "source")]
    variants = [
        line
        for variant in facts["lora_variants"]
        for line in ("", "[[lora_variants]]", f"options = {_inline(variant['options'])}", *_base_lines(variant))
    ]
    methods = [line for name, method in facts["methods"].items() for line in _method_lines(name, method)]
    return "\n".join([f"# {HEADER}", *head, *variants, *methods]) + "\n"


HEADER = "Written by `python -m trainer.methods.survey` from what ran; profiles/peft_method.py explains it."


def _method_lines(name: str, method: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"[methods.{name}]")
    yield f"trains = {json.dumps(method['trains'])}"
    yield f"required = {json.dumps(method['required'])}"
    yield f"example = {_inline(method['example'])}"
    yield f"resumes = {json.dumps(method['resumes'])}"
    yield from _base_lines(method)
    yield f"[methods.{name}.options]"
    yield from (f"{option} = {_inline(facts)}" for option, facts in method["options"].items())


def _base_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    return (f"bases.{base} = {_inline(found)}" for base, found in facts["bases"].items())


def _inline(value: object) -> str:
    """A value on one line: TOML's tables in braces, and JSON for the rest, where both agree."""
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{name} = {_inline(inner)}" for name, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    return json.dumps(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Survey, and write or check the file; 1 if a check finds another one."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.methods.survey", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with bench() as made:
        text = as_toml(survey(made, method_names()))
    if not arguments.check:
        FACTS.write_text(text, encoding="utf-8")
        TABLE.write_text(methods_table(peft_facts()), encoding="utf-8")
        sys.stdout.write(f"wrote {FACTS} and {TABLE}\n")
        return 0
    stale = text != FACTS.read_text(encoding="utf-8")
    sys.stdout.write(f"{FACTS} is {'stale: run `python -m trainer.methods.survey`' if stale else 'up to date'}\n")
    return int(stale)


if __name__ == "__main__":
    raise SystemExit(main())
