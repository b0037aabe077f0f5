"""What can be traced and what cannot, tried case by case: methods, objectives, knobs, and the models of Transformers.

`python -m calibration.traceable` asks each case as `fitune estimate --exact` would, keeps the outcomes in
`traceable.json` and shows them in TRACEABLE.md. It goes on where it was stopped, and tries again only the cases that
`--again` is part of.
"""

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto import modeling_auto

from calibration.exact import answer
from planner.config.run_config import LOSS_PATHS, Objective, RunConfig
from planner.predict.traced import TraceQuestion
from profiles.errors import FituneError, UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import find_model
from profiles.peft_method import peft_facts
from trainer.model.adapter import first_line
from trainer.model.build import empty_model

KEPT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_name("TRACEABLE.md")
TRACED = "traced"
"""How the outcome of a case begins that can be traced; of the others it is the reason."""

INTRODUCTION = """# What can be traced

Each case below was asked as `fitune estimate --exact` asks it, on small models, or on Transformers' own default of a
type with four layers. What is not traced has the reason that a user is given. A default that lacks a number, such as
how many experts there are, says nothing of real models of that type. This page is written by
`python -m calibration.traceable`, and a test tries some cases again.
"""

GPU = find_gpu("a100-40gb")
ROWS = {"max_length": 64, "per_device_train_batch_size": 2}

BASES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32", "mixed_precision": "no"},
    "bfloat16": {},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "dtype": "float32"},
    "lora": {"method": "lora", "lora": {}},
    "int8": {"method": "qlora", "lora": {}, "quantization": "int8"},
    "nf4": {"method": "qlora", "lora": {}, "quantization": "nf4"},
}
"""The methods of the trainer, each on a base of its own."""

EVALUATES = {"data": {"path": "rows.jsonl", "eval_fraction": 0.1}}
OF_EACH_OBJECTIVE: tuple[dict[str, Any], ...] = ({}, {"checkpoint_offload": True}, EVALUATES)
OF_ANSWERS: tuple[dict[str, Any], ...] = (
    {"packing": True},
    {"padding_free": True, "attn_implementation": "flash_attention_2"},
    {"loss": "full"},
)
ASKED_BEFORE = {"preference": {"precompute_ref_log_probs": True}}
OF_EACH_MODEL: tuple[dict[str, Any], ...] = (
    {"gradient_checkpointing": False},
    {"checkpoint_every_n_layers": 2},
    {"gradient_accumulation_steps": 4},
    {"attn_implementation": "eager"},
    {"attn_implementation": "flash_attention_2"},
)
OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "rmsprop_bnb",
    "adafactor",
    "adagrad",
    "rmsprop",
    "sgd",
    "lomo",
    "galore_adamw",
    "apollo_adamw",
    "grokadamw",
    "schedule_free_adamw",
    "stable_adamw",
    "adamw_torch_8bit",
)
SPECIAL_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
WAY_OUT = re.compile(r"--set (?P<knob>\w+)=(?P<value>\w+)")
NUM_LAYERS = 4
"""Layers of a model of Transformers here, where its configuration takes a number of them: enough for each kind."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question: knobs of a run beside the usual ones, of a model by its profile or by its type in Transformers."""

    group: str
    name: str
    knobs: Mapping[str, Any]
    model: ModelProfile | str


@cache
def small_llama() -> ModelProfile:
    """A Llama of five narrow layers, of which the trace leaves some out."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 5, "vocab_size": 512}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": False}
    return find_model("SmolLM2-135M").model_copy(update=shape | heads)


@cache
def small_t5() -> ModelProfile:
    """A Flan-T5 of two short stacks."""
    shape = {"num_hidden_layers": NUM_LAYERS, "num_decoder_layers": NUM_LAYERS, "vocab_size": 512}
    return find_model("google/flan-t5-small").model_copy(update=shape)


def cases() -> Iterator[Case]:
    """All of them, in the order of the page."""
    yield from _methods()
    yield from _objectives()
    yield from _knobs()
    yield from _models("decoders", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    yield from _models("encoder-decoders", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)


def _methods() -> Iterator[Case]:
    """Each method of PEFT, and each variant of LoRA, on each base on which it trains."""
    facts = peft_facts()
    for name, method in facts.methods.items():
        for base, outcome in method.bases.items():
            if outcome.works:
                knobs = {"method": "peft", "peft": {"type": name, **method.example}, **BASES[base], **outcome.needs}
                yield Case("methods of PEFT", f"{name}, {base}", knobs, small_llama())
    for variant in facts.lora_variants:
        for base, outcome in variant.bases.items():
            if outcome.works:
                way = "qlora" if "quantization" in BASES[base] else "lora"
                knobs = {"method": way, "lora": variant.options, **BASES[base], **outcome.needs}
                yield Case("variants of LoRA", f"{_words(variant.options)}, {base}", knobs, small_llama())


def _objectives() -> Iterator[Case]:
    for objective in get_args(Objective):
        asked = (ASKED_BEFORE,) if objective in ("dpo", "kto") else ()
        joined = OF_ANSWERS if objective == "sft" else ()
        for way, knobs in WAYS.items():
            for more in (*OF_EACH_OBJECTIVE, *asked, *joined):
                name = ", ".join((objective, way, *([_words(more)] if more else ())))
                yield Case("objectives", name, {"objective": objective, **knobs, **more}, small_llama())


def _knobs() -> Iterator[Case]:
    for optimizer in OPTIMIZERS:
        knobs = {"method": "full", "dtype": "bfloat16", "optim": optimizer}
        yield Case("knobs", f"optim {optimizer}", knobs, small_llama())
    for model, name, loss in ((small_llama(), "llama", {}), (small_t5(), "t5", {"loss": "full"})):
        for way, knobs in WAYS.items():
            for more in OF_EACH_MODEL:
                yield Case("knobs", f"{name}, {way}, {_words(more)}", {**knobs, **loss, **more}, model)
    for more in (*OF_EACH_OBJECTIVE, {"optim": "adafactor"}, {"max_target_length": 32}, {"loss": "fused"}):
        knobs = {**WAYS["lora"], "loss": "full", **more}
        yield Case("knobs", ", ".join(("t5, lora", *([_words(more)] if more else ()))), knobs, small_t5())


def _models(group: str, types: Mapping[str, object]) -> Iterator[Case]:
    """The types of model that Transformers has a class for, with its own default sizes and few layers."""
    for model_type in types:
        if group == "encoder-decoders" or not _encodes(model_type):
            loss = "full" if group == "encoder-decoders" and _encodes(model_type) else LOSS_PATHS["sft"][0]
            yield Case(group, model_type, {**WAYS["lora"], "loss": loss}, model_type)


@cache
def _encodes(model_type: str) -> bool:
    """Whether an encoder reads the prompt: Transformers lists such models among the decoders as well."""
    return bool(getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False))


def _words(knobs: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {_words(value) if isinstance(value, Mapping) else value}" for name, value in knobs.items())


def outcome(case: Case) -> str:
    """`traced`, with the knobs that it took by the hints of errors, or why it cannot be."""
    more: dict[str, str] = {}
    while True:
        try:
            _ask(case, more)
            return ", ".join((TRACED, *(f"{knob}: {value}" for knob, value in more.items())))
        except ValidationError as error:
            return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        except FituneError as error:
            way_out = WAY_OUT.search(error.hint or "")
            if way_out is None or way_out["knob"] in more:
                return error.message
            more[way_out["knob"]] = way_out["value"]


def _ask(case: Case, more: Mapping[str, str]) -> None:
    config = RunConfig.model_validate({"model": "small", "gpu": GPU.name, **ROWS, **case.knobs, **more})
    model, folder = (case.model, None) if isinstance(case.model, ModelProfile) else (None, tempfile.mkdtemp())
    try:
        if folder is not None:
            _short(str(case.model), config).save_pretrained(folder)
        question = TraceQuestion(
            config=config,
            gpu=GPU,
            trainer="fitune",
            model=model,
            folder=folder and Path(folder),
            usable_bytes=GPU.memory_bytes,
        )
        assert answer(question).phases, case.name
    finally:
        if folder is not None:
            shutil.rmtree(folder)


def _short(model_type: str, config: RunConfig) -> PreTrainedConfig:
    """Transformers' default for `model_type`, with few layers where its other numbers allow that."""
    try:
        short: PreTrainedConfig = CONFIG_MAPPING[model_type](num_hidden_layers=NUM_LAYERS, **SPECIAL_TOKENS)
        with torch.device("meta"):
            empty_model(config, short)
    except Exception:  # noqa: BLE001  # each type says in its own way that its numbers disagree
        return _default(model_type)
    return short


def _default(model_type: str) -> PreTrainedConfig:
    try:
        return CONFIG_MAPPING[model_type](**SPECIAL_TOKENS)
    except Exception as error:
        raise UnsupportedError(f"Transformers has no default for a {model_type}: {first_line(error)}") from error


def read_kept() -> dict[str, Any]:
    """The libraries that were tried, and each outcome by group and name."""
    return json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else {"libraries": {}, "outcomes": {}}


def libraries() -> dict[str, str]:
    """What decides whether a step can be traced."""
    return {name: version(name) for name in ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes")}


def page(kept: Mapping[str, Any]) -> str:
    """TRACEABLE.md: of each group how many, and why the others cannot."""
    outcomes: Mapping[str, Mapping[str, str]] = kept["outcomes"]
    of = Counter(case.group for case in cases())
    counts = [
        (group, str(sum(one.startswith(TRACED) for one in found.values())), str(len(found)), str(of[group]))
        for group, found in outcomes.items()
    ]
    tried = ", ".join(f"{name} {number}" for name, number in kept["libraries"].items())
    parts = [INTRODUCTION.strip(), f"Tried with {tried}.", _table(("group", "traced", "tried", "known"), counts)]
    for group, found in outcomes.items():
        works = [name + one.removeprefix(TRACED) for name, one in found.items() if one.startswith(TRACED)]
        parts += [f"## {group[0].upper()}{group[1:]}"] + ([f"Traced: {'; '.join(works)}."] if works else [])
        refused = [(name, one) for name, one in found.items() if not one.startswith(TRACED)]
        if refused:
            parts.append(_table(("not traced", "why"), refused))
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows))


def main(
    again: Annotated[
        str | None, typer.Option(help="Try also those cases again of which this is part of the name.")
    ] = None,
) -> None:
    """Try what was not tried yet, and write calibration/TRACEABLE.md."""
    kept = read_kept()
    if kept["libraries"] != libraries():
        kept = {"libraries": libraries(), "outcomes": {}}
    every = list(cases())
    before = {(group, name): one for group, found in kept["outcomes"].items() for name, one in found.items()}
    found = {key: before[key] for case in every if (key := (case.group, case.name)) in before}
    new = [case for case in every if (case.group, case.name) not in found or (again and again in case.name)]
    for case in track(new, "tracing", console=Console(stderr=True)):
        found[case.group, case.name] = outcome(case)
        kept["outcomes"] = {
            group: {
                case.name: found[group, case.name]
                for case in every
                if case.group == group and (group, case.name) in found
            }
            for group in dict.fromkeys(case.group for case in every)
        }
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    PAGE.write_text(page(kept), "utf-8")


if __name__ == "__main__":
    typer.run(main)
