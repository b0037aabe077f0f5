"""Our trainer beside plain TRL and plain Transformers at the same configuration, measured in one run.

python -m calibration.versus [--minutes 4] [--output FILE] [--json]

Prints ratios: tokens/s ours over theirs, peak memory ours over theirs, predicted over measured. Ours runs each
configuration with both ways to the loss: that of TRL (fused) and that of Transformers (full).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from calibration.measuring.benchmark import benchmark
from calibration.measuring.grid import CPU_STEPS, RANDOM_TOKENS, STEPS, Planned, planned, tiny_model
from calibration.measuring.measurement import Contender, Measurement
from planner.config.run_config import DataKnobs, LoraKnobs, LossPath, RunConfig
from planner.report.console import data_console
from planner.report.document import print_json
from planner.report.table import Column, print_table
from planner.step.hardware import precisions
from planner.units import format_bytes
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

LOSS_OF: Mapping[Contender, LossPath] = {"trl": "fused", "transformers": "full"}
"""The way to the loss that each of them takes; at the same one, the rest of ours is compared."""

QUESTIONS: tuple[tuple[str, str, int, int], ...] = (
    ("llama3.2-1b", "lora", 4, 1024),
    ("qwen2.5-0.5b", "full", 4, 1024),
    ("llama3.1-8b", "qlora nf4", 2, 2048),
    ("mistral-7b", "lora", 1, 2048),
)
"""Model, method, rows at once and tokens a row."""

COLUMNS = (
    Column("run"),
    Column("against"),
    Column("speed", justify="right"),
    Column("memory", justify="right"),
    Column("tokens/s", rank=3, justify="right"),
    Column("theirs", rank=4, justify="right"),
    Column("peak", rank=5, justify="right"),
    Column("theirs", rank=6, justify="right"),
    Column("predicted", rank=1, justify="right"),
    Column("theirs", rank=2, justify="right"),
)

Pair = tuple[Planned, Planned]
"""The same run in our trainer and in theirs."""


@dataclass(frozen=True, slots=True)
class Duel:
    """Our run and that of another trainer: tokens/s, peaks of live tensors in bytes, and predicted over measured."""

    run: str
    against: Contender
    tokens_per_second: float
    their_tokens_per_second: float
    peak_bytes: int
    their_peak_bytes: int
    predicted_ratio: float
    their_predicted_ratio: float

    @property
    def speed_ratio(self) -> float:
        """Tokens/s, ours over theirs."""
        return self.tokens_per_second / self.their_tokens_per_second

    @property
    def memory_ratio(self) -> float:
        """Peaks, ours over theirs."""
        return self.peak_bytes / self.their_peak_bytes


def pairs(gpu: GpuProfile | None) -> list[Pair]:
    """What is measured: each run with the loss of another trainer, first by ours, then by that one."""
    found = []
    for model, config in _runs(gpu):
        for contender, loss in LOSS_OF.items():
            same = config.model_copy(update={"loss": loss})
            ours, theirs = (planned(model, same, gpu, trainer=who) for who in ("fitune", contender))
            if ours and theirs and (gpu is None or {ours.prediction.verdict, theirs.prediction.verdict} == {"fits"}):
                found.append((ours, theirs))
    return found


def duels(pairs: Sequence[Pair], measured: Sequence[Measurement]) -> list[Duel]:
    """Those of which both runs were measured."""
    by_id = {one.point.id: one for one in measured if one.attempt.outcome == "ran"}
    both = ((by_id.get(ours.point.id), by_id.get(theirs.point.id)) for ours, theirs in pairs)
    return [_duel(ours, theirs) for ours, theirs in both if ours and theirs]


def _duel(own: Measurement, other: Measurement) -> Duel:
    config = own.point.config
    (tokens, peak, predicted), (their_tokens, their_peak, their_predicted) = map(_figures, (own, other))
    words = (config.model.rpartition("/")[2], config.method, config.quantization or config.dtype)
    return Duel(
        run=f"{' '.join(words)} {config.per_device_train_batch_size} x {config.max_length}",
        against=other.point.trainer,
        tokens_per_second=tokens,
        their_tokens_per_second=their_tokens,
        peak_bytes=peak,
        their_peak_bytes=their_peak,
        predicted_ratio=predicted,
        their_predicted_ratio=their_predicted,
    )


def _figures(one: Measurement) -> tuple[float, int, float]:
    measured = one.attempt.measured
    assert measured is not None, "it ran"
    peak = measured.allocated_bytes or 0
    return measured.tokens_per_second or 0.0, peak, one.expected.closed_form.allocated_bytes / peak


def _runs(gpu: GpuProfile | None) -> list[tuple[ModelProfile, RunConfig]]:
    """On a CPU, tiny models: that shows that it works, and how much each trainer costs beside the model."""
    if gpu is None:
        tiny = tiny_model()
        return [(tiny, _config(tiny, method, 2, 64, None)) for method in ("lora", "full", "qlora nf4")]
    return [
        (model, _config(model, method, rows, length, gpu))
        for name, method, rows, length in QUESTIONS
        for model in (find_model(name),)
    ]


def _config(model: ModelProfile, words: str, rows: int, length: int, gpu: GpuProfile | None) -> RunConfig:
    method, _, quantization = words.partition(" ")
    precision = precisions(model, gpu, method)[0]  # type: ignore[arg-type]
    return RunConfig(
        model=model.hf_id,
        gpu=gpu.name if gpu else None,
        method=method,
        quantization=quantization or None,
        dtype=precision.dtype,
        mixed_precision=precision.mixed_precision,
        lora=None if method == "full" else LoraKnobs(),
        data=DataKnobs(path=RANDOM_TOKENS),
        per_device_train_batch_size=rows,
        max_length=length,
        max_steps=STEPS if gpu else CPU_STEPS + 2,
    )


def print_duels(found: Sequence[Duel], *, as_json: bool) -> None:
    """Print what was measured, as ratios."""
    if as_json:
        print_json({"duels": [_as_data(one) for one in found], "trainers": list(get_args(Contender))})
        return
    rows = [
        [
            one.run,
            one.against,
            f"{one.speed_ratio:.2f}",
            f"{one.memory_ratio:.3f}",
            f"{one.tokens_per_second:,.0f}",
            f"{one.their_tokens_per_second:,.0f}",
            format_bytes(one.peak_bytes),
            format_bytes(one.their_peak_bytes),
            f"{one.predicted_ratio:.3f}",
            f"{one.their_predicted_ratio:.3f}",
        ]
        for one in found
    ]
    console = data_console()
    if not rows:
        console.print("no pair of runs was measured")
        return
    print_table(console, COLUMNS, rows)
    console.print("\nspeed and memory: ours / theirs; predicted: memory, predicted / measured, ours and theirs")


def _as_data(one: Duel) -> dict[str, Any]:
    return asdict(one) | {"speed_ratio": one.speed_ratio, "memory_ratio": one.memory_ratio}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 0, or 1 where no pair of runs could be measured."""
    about = (__doc__ or "").splitlines()[0]
    return benchmark(argv, "versus", about, ask=pairs, points_of=lambda pair: pair, find=duels, tell=print_duels)


if __name__ == "__main__":
    sys.exit(main())
