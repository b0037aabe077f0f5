"""What is worth measuring on a card: training steps that differ in everything that memory and speed depend on.

Configurations are drawn at random from all values of all knobs, always the same ones. Those are kept that are valid,
that suit the card and that the closed form predicts to fit, or to reach a cap. Each next point is the one that shows
most pairs of values that no earlier point had together, for the time that it takes: wherever time ends, what was
measured covers as much as it could.
"""

import hashlib
import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from calibration.measuring.measurement import Contender, Point
from planner.config.run_config import LOSS_PATHS, DataKnobs, LoraKnobs, RunConfig
from planner.predict.prediction import Prediction, Target, predict
from planner.step.hardware import attention_implementations, objections, precisions
from planner.step.resolve import resolve_step
from profiles.build_architecture import architecture
from profiles.errors import InputError
from profiles.gpu import GpuProfile
from profiles.main_memory import available_memory_bytes
from profiles.model import ModelProfile
from profiles.model_catalog import find_model
from profiles.overheads import MIB

MODELS = (
    "smollm2-135m",
    "gpt2-medium",
    "opt-350m",
    "bloom-560m",
    "qwen2.5-0.5b",
    "pythia-1b",
    "llama3.2-1b",
    "gemma-2-2b",
    "phi-2",
    "qwen3-4b",
    "mistral-7b",
    "llama2-7b",
    "qwen2.5-7b",
    "llama3.1-8b",
    "qwen2.5-14b",
)
"""0.1B to 14B; each has something that the others have not: tied heads, biases, vocabularies, windows, shared heads."""

KNOBS: Mapping[str, Sequence[Any]] = {
    "method": ("full", "full", "lora", "lora", "qlora nf4", "qlora int8"),
    "precision": (0, 1),
    "objective": ("sft", "sft", "dpo"),
    "max_length": (512, 1024, 2048, 4096, 8192),
    "batch": (1, 1, 2, 4, 8),
    "checkpointing": ("none", "all", "every 2", "offload"),
    "attention": ("first", "first", "eager"),
    "loss": ("full", "fused"),
    "optim": ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"),
    "r": (8, 16, 64),
    "accumulation": (1, 1, 2),
    "evaluation": (False, False, True),
}
"""Values that are drawn; one that stands twice is drawn twice as often."""

CHECKPOINTING: Mapping[str, Mapping[str, Any]] = {
    "none": {"gradient_checkpointing": False},
    "all": {"gradient_checkpointing": True},
    "every 2": {"gradient_checkpointing": True, "checkpoint_every_n_layers": 2},
    "offload": {"gradient_checkpointing": True, "checkpoint_offload": True},
}

DRAWS = 600
CAPPED_DRAWS = 60
SEED = 0

RANDOM_TOKENS = "random tokens"
"""What stands in place of a data file."""

STEPS = 5
"""Optimizer steps of a point: two until states exist and kernels are chosen, and three that are timed."""

CPU_STEPS = 3

LONGEST_STEP_SECONDS = 4.0
UNKNOWN_STEP_SECONDS = 1.0
SECONDS_BESIDE_STEPS = 8.0
"""What a point takes beside its steps, before any was measured: building the model and the trainer."""

LENGTHS = range(128, 16384 + 1, 32)
"""Lengths among which a cap is searched for, in tokens."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A point, what the closed form says of it, and the seconds that its steps will take."""

    point: Point
    prediction: Prediction
    seconds: float


def grid(gpu: GpuProfile, draws: int = DRAWS) -> list[Planned]:
    """Points that fit `gpu`, of so many that are drawn, the most informative first."""
    points = (planned(model, config, gpu) for model, config in _drawn(gpu, draws))
    return by_information([one for one in points if one is not None and one.prediction.verdict == "fits"])


def capped_grid(gpu: GpuProfile, caps: Sequence[int], draws: int = CAPPED_DRAWS) -> list[Planned]:
    """Points at the edge of each of `caps` (bytes that a process may take), those of the most informative edge first.

    Of each configuration the longest rows that are called `fits`, the shortest that are called `no`, and a length
    between them, if any: whether they run shows what the verdicts are worth.
    """
    edges = [edge_points(*drawn, gpu, cap_bytes) for cap_bytes in caps for drawn in _drawn(gpu, draws)]
    by_first = {edge[0].point.id: edge for edge in edges if edge}
    firsts = by_information([edge[0] for edge in by_first.values()])
    return [one for first in firsts for one in by_first[first.point.id]]


def cpu_grid() -> list[Planned]:
    """A few steps of a tiny model, as a test of the measurement where there is no card."""
    model = tiny_model()
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"method": "full", "lora": None, "gradient_checkpointing": False, "loss": "full"},
        {"method": "qlora", "quantization": "nf4", "attn_implementation": "eager"},
        {"objective": "dpo", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    )
    usual = {
        "model": model.hf_id,
        "lora": LoraKnobs(),
        "dtype": "float32",
        "mixed_precision": "no",
        "max_length": 64,
        "per_device_train_batch_size": 2,
        "max_steps": CPU_STEPS,
        "data": DataKnobs(path=RANDOM_TOKENS, eval_fraction=0.5),
    }
    points = (planned(model, RunConfig(**{**usual, **change}), None) for change in changes)
    return [one for one in points if one is not None]


def tiny_model() -> ModelProfile:
    """The smallest model of the catalogue with most of it left out."""
    shape = {"num_hidden_layers": 4, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6}
    return find_model("smollm2-135m").model_copy(
        update={
            "hf_id": "tiny",
            "aliases": (),
            "num_parameters_published": None,
            "num_key_value_heads": 2,
            "vocab_size": 2048,
            "head_dim": 32,
            **shape,
        }
    )


def planned(
    model: ModelProfile,
    config: RunConfig,
    gpu: GpuProfile | None,
    cap_bytes: int | None = None,
    trainer: Contender = "fitune",
) -> Planned | None:
    """The point of `config`; None if it does not suit the card, is not described, or takes too long."""
    card = capped(gpu, cap_bytes) if gpu and cap_bytes else gpu
    if objections(config, model, gpu):
        return None
    try:
        prediction = predict(config, Target(model, card, None if card else available_memory_bytes(), trainer))
    except InputError:
        return None
    seconds = prediction.speed.seconds_per_step if prediction.speed else UNKNOWN_STEP_SECONDS
    if seconds > LONGEST_STEP_SECONDS:
        return None
    point = Point(
        id=_id(config, gpu, cap_bytes, trainer),
        model=model,
        config=config,
        step=resolve_step(config, model, gpu, trainer),
        trainer=trainer,
        cap_bytes=cap_bytes,
        allocator_limit_bytes=cap_bytes - gpu.context_bytes if gpu and cap_bytes else None,
    )
    return Planned(point, prediction, seconds * (config.max_steps or 1))


def capped(gpu: GpuProfile, cap_bytes: int) -> GpuProfile:
    """`gpu` as if a process could take only so many bytes of it."""
    mib = cap_bytes // MIB
    return gpu.model_copy(update={"torch_memory_mib": mib, "driver_memory_mib": mib})


def by_information(points: Sequence[Planned]) -> list[Planned]:
    """The points in the order of the new pairs of values that they show, per second."""
    rest, order = list(points), list[Planned]()
    pairs = {one.point.id: frozenset(combinations(values_shown(one.point), 2)) for one in points}
    seen: set[object] = set()
    while rest:
        best = max(rest, key=lambda one: len(pairs[one.point.id] - seen) / (SECONDS_BESIDE_STEPS + one.seconds))
        rest.remove(best)
        seen |= pairs[best.point.id]
        order.append(best)
    return order


def values_shown(point: Point) -> tuple[tuple[str, object], ...]:
    """The values of the knobs that a point shows; lengths count as the same from one power of two to the next."""
    config = point.config
    return (
        ("cap", point.cap_bytes),
        ("model", config.model),
        ("method", f"{config.method} {config.quantization or config.dtype}"),
        ("objective", config.objective),
        ("max_length", (config.max_length - 1).bit_length()),
        ("batch", config.per_device_train_batch_size),
        ("checkpointing", checkpointing(config)),
        ("attention", config.attn_implementation),
        ("loss", config.loss),
        ("optim", config.optim),
        ("r", config.lora.r if config.lora else None),
        ("accumulation", config.gradient_accumulation_steps),
        ("evaluation", config.data is not None and config.data.eval_fraction > 0),
    )


def checkpointing(config: RunConfig) -> str:
    """The kind of gradient checkpointing, as the grid calls it."""
    if not config.gradient_checkpointing:
        return "none"
    if config.checkpoint_offload:
        return "offload"
    return "all" if config.checkpoint_every_n_layers == 1 else f"every {config.checkpoint_every_n_layers}"


def edge_points(model: ModelProfile, config: RunConfig, gpu: GpuProfile, cap_bytes: int) -> list[Planned]:
    """The points of `config` around the length at which the closed form says that `cap_bytes` are reached.

    Empty if no length that the model reads, and that is soon done, is at the edge.
    """
    lengths = [length for length in LENGTHS if length <= (model.max_position_embeddings or length)]

    @cache
    def at(length: int) -> Planned | None:
        return planned(model, config.model_copy(update={"max_length": length}), gpu, cap_bytes)

    def among(*verdicts: str) -> int:
        """How many of the first lengths have one of the verdicts; more tokens never take less."""
        return bisect_left(lengths, True, key=lambda length: (one := at(length)) is None or _word(one) not in verdicts)

    fits, works = among("fits"), among("fits", "tight")
    if not 0 < fits <= works < len(lengths):
        return []
    found = [at(lengths[position]) for position in sorted({fits - 1, (fits + works) // 2, works})]
    return [one for one in found if one is not None] if all(found) else []


def _word(one: Planned) -> str:
    return one.prediction.verdict


def _drawn(gpu: GpuProfile, draws: int) -> Iterator[tuple[ModelProfile, RunConfig]]:
    """Configurations drawn from all values of all knobs, each once."""
    dice = random.Random(SEED)  # noqa: S311
    seen: set[str] = set()
    for _ in range(draws):
        model = find_model(dice.choice(MODELS))
        values = {knob: dice.choice(choices) for knob, choices in KNOBS.items()}
        config = _config(model, gpu, values)
        if config is not None and (text := config.model_dump_json()) not in seen:
            seen.add(text)
            yield model, config


def _config(model: ModelProfile, gpu: GpuProfile, values: Mapping[str, Any]) -> RunConfig | None:
    """The run with these values of the knobs; None if they do not go together."""
    method, _, quantization = values["method"].partition(" ")
    codes = architecture(model).attention_codes
    usual = attention_implementations(architecture(model), gpu)[0]
    losses = LOSS_PATHS[values["objective"]]
    choices = precisions(model, gpu, method)
    precision = choices[values["precision"] % len(choices)]
    if values["max_length"] > (model.max_position_embeddings or values["max_length"]):
        return None
    try:
        return RunConfig(
            model=model.hf_id,
            gpu=gpu.name,
            objective=values["objective"],
            method=method,
            quantization=quantization or None,
            dtype=precision.dtype,
            mixed_precision=precision.mixed_precision,
            lora=None if method == "full" else LoraKnobs(r=values["r"]),
            data=DataKnobs(path=RANDOM_TOKENS, eval_fraction=0.5 if values["evaluation"] else 0),
            max_length=values["max_length"],
            per_device_train_batch_size=values["batch"],
            gradient_accumulation_steps=values["accumulation"],
            attn_implementation="eager" if values["attention"] == "eager" and "eager" in codes else usual,
            loss=values["loss"] if values["loss"] in losses else losses[0],
            optim=values["optim"],
            max_steps=STEPS,
            **CHECKPOINTING[values["checkpointing"]],
        )
    except ValidationError:
        return None


def _id(config: RunConfig, gpu: GpuProfile | None, cap_bytes: int | None, trainer: Contender) -> str:
    said = f"{config.model_dump_json()} {gpu.name if gpu else 'cpu'} {cap_bytes}"
    said += f" {trainer}" if trainer != "fitune" else ""
    return hashlib.sha256(said.encode()).hexdigest()[:12]
