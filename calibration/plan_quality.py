"""How good the planner's choice is: what it chose, measured beside what it left.

python -m calibration.plan_quality [--minutes 4] [--output FILE] [--json]

A question is a model, a part of the card's memory and a length. Its grid is the planner's choice and, of the same
precision, the fastest of each other way to keep activations and to the loss that may run, some that are only just
refused among them. Printed are the choice's tokens/s over the best of the grid, and predicted over measured step times.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from calibration.measuring.benchmark import benchmark
from calibration.measuring.grid import (
    CPU_STEPS,
    RANDOM_TOKENS,
    STEPS,
    Planned,
    capped,
    checkpointing,
    planned,
    tiny_model,
)
from calibration.measuring.measurement import Measurement
from planner.config.run_config import DataKnobs, RunConfig
from planner.report.answer import method_words
from planner.report.console import data_console
from planner.report.document import print_json
from planner.report.table import Column, print_table
from planner.search.ranking import search
from planner.search.request import Request
from planner.units import GIB, format_bytes
from profiles.gpu import GpuProfile
from profiles.main_memory import available_memory_bytes
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

QUESTIONS: tuple[tuple[str, int, int], ...] = (
    ("qwen2.5-0.5b", 15, 2048),
    ("llama3.2-1b", 15, 1024),
    ("phi-2", 15, 1024),
    ("mistral-7b", 15, 1024),
    ("gemma-2-2b", 24, 1024),
    ("qwen3-4b", 24, 2048),
    ("llama3.1-8b", 24, 1024),
    ("phi-2", 24, 2048),
    ("llama3.2-1b", 15, 4096),
    ("mistral-7b", 40, 2048),
    ("llama3.1-8b", 40, 2048),
    ("qwen2.5-7b", 24, 2048),
    ("qwen2.5-14b", 40, 1024),
    ("mistral-7b", 24, 4096),
)
"""Model, memory in GiB, tokens a row: the quick ones first."""

CPU_LENGTHS = (48, 64, 96)
ROWS = 4
"""Rows of an optimizer step: as many as it takes for batches to differ, and few enough for a short step."""

GRID = 4
ONLY_JUST = 1.05
"""What is refused may run if the least that it can work with is not larger than this much of the memory."""

COLUMNS = (
    Column("model"),
    Column("memory", justify="right"),
    Column("tokens", justify="right"),
    Column("chosen", rank=4),
    Column("tokens/s", rank=1, justify="right"),
    Column("best", rank=2, justify="right"),
    Column("of", rank=3, justify="right"),
    Column("share", justify="right"),
    Column("step time", rank=1, justify="right"),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A model, what a process may take (None: what the CPU has free), and the tokens of a row."""

    model: ModelProfile
    cap_bytes: int | None
    max_length: int


Asked = tuple[Question, Sequence[Planned]]
"""A question and its grid, the planner's choice first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: tokens/s of the choice and of the best of the grid, and of how many that were tried.

    What met the end of memory has no tokens/s. `step_ratios` are predicted over measured step times of all that ran,
    none on a CPU.
    """

    model: str
    cap_bytes: int | None
    max_length: int
    chosen: str
    tokens_per_second: float
    best_tokens_per_second: float
    tried: int
    step_ratios: tuple[float, ...]

    @property
    def share(self) -> float:
        """Tokens/s of the choice over those of the best."""
        return self.tokens_per_second / self.best_tokens_per_second if self.best_tokens_per_second else 0.0


def questions(gpu: GpuProfile | None) -> list[Question]:
    """Those that the card is large enough for; on a CPU, of a tiny model."""
    if gpu is None:
        return [Question(tiny_model(), None, length) for length in CPU_LENGTHS]
    asked = (Question(find_model(name), gib * GIB, length) for name, gib, length in QUESTIONS)
    return [one for one in asked if one.cap_bytes is None or one.cap_bytes <= gpu.memory_bytes]


def grid_of(question: Question, gpu: GpuProfile | None) -> list[Planned]:
    """The planner's choice, then others of the same precision; empty if nothing fits."""
    card = capped(gpu, question.cap_bytes) if gpu and question.cap_bytes else gpu
    request = Request(
        model=question.model,
        gpu=card,
        method="lora" if gpu is None else "auto",
        effective_batch_size=ROWS,
        knobs={"max_length": question.max_length},
        free_bytes=None if card else available_memory_bytes(),
    )
    result = search(request)
    if result.best is None:
        return []
    best = result.best.config
    others = [loser.config for loser in result.losers if _precision(loser.config) == _precision(best)]
    chosen = _planned(question, best, gpu)
    return [chosen, *_different(_all_planned(question, others, gpu))] if chosen else []


def _all_planned(question: Question, configs: Sequence[RunConfig], gpu: GpuProfile | None) -> Iterator[Planned]:
    for config in configs:
        if config.attn_implementation == "flash_attention_2":
            # A package that the card at hand may not have.
            continue
        one = _planned(question, config, gpu)
        if one and one.prediction.estimate.interval_bytes[0] <= one.prediction.usable_bytes * ONLY_JUST:
            yield one


def _different(others: Iterator[Planned]) -> list[Planned]:
    """The fastest of each way to keep activations, to the loss, and verdict; of those the fastest.

    Where no speed is known, as on a CPU, the largest micro-batch stands for the fastest.
    """
    best: dict[object, Planned] = {}
    for one in sorted(others, key=lambda one: (one.seconds, -one.point.config.per_device_train_batch_size)):
        config = one.point.config
        best.setdefault((checkpointing(config), config.loss, one.prediction.verdict == "no"), one)
    return list(best.values())[: GRID - 1]


def _precision(config: RunConfig) -> tuple[object, ...]:
    """What changes what is learned: not to be traded for speed."""
    return config.method, config.quantization, config.dtype, config.optim, config.max_length, config.lora


def _planned(question: Question, config: RunConfig, gpu: GpuProfile | None) -> Planned | None:
    # Steps of a CPU differ among themselves: one that is timed says little.
    steps = STEPS if gpu else 2 * CPU_STEPS
    run = config.model_copy(update={"data": DataKnobs(path=RANDOM_TOKENS), "max_steps": steps})
    return planned(question.model, run, gpu, question.cap_bytes)


def grids(gpu: GpuProfile | None) -> list[Asked]:
    """All questions with their grids."""
    return [(question, grid_of(question, gpu)) for question in questions(gpu)]


def answers(asked: Sequence[Asked], measurements: Sequence[Measurement]) -> list[Answer]:
    """Those of the questions whose choice was tried beside another one."""
    by_id = {one.point.id: one for one in measurements}
    found = []
    for question, grid in asked:
        tried = [
            (one, measurement, speed)
            for one in grid
            if (measurement := by_id.get(one.point.id)) and (speed := _speed(measurement)) is not None
        ]
        if len(tried) > 1 and tried[0][0] is grid[0]:
            ratios = (_step_ratio(one, measurement) for one, measurement, speed in tried if speed)
            found.append(
                Answer(
                    model=question.model.hf_id.rpartition("/")[2],
                    cap_bytes=question.cap_bytes,
                    max_length=question.max_length,
                    chosen=_words(grid[0].point.config),
                    tokens_per_second=tried[0][2],
                    best_tokens_per_second=max(speed for _, _, speed in tried),
                    tried=len(tried),
                    step_ratios=tuple(ratio for ratio in ratios if ratio is not None),
                )
            )
    return found


def _words(config: RunConfig) -> str:
    return f"{method_words(config)}, checkpoints {checkpointing(config)}, {config.per_device_train_batch_size} at once"


def _speed(measurement: Measurement) -> float | None:
    """Tokens/s: none where memory ended, unknown where something else went wrong."""
    attempt = measurement.attempt
    if attempt.outcome == "ran" and attempt.measured:
        return attempt.measured.tokens_per_second
    return 0.0 if attempt.outcome == "out of memory" else None


def _step_ratio(one: Planned, measurement: Measurement) -> float | None:
    speed, seconds = one.prediction.speed, measurement.attempt.seconds_per_step
    return speed.seconds_per_step / seconds if speed and seconds else None


def print_answers(found: Sequence[Answer], *, as_json: bool) -> None:
    """Print what the choices are worth."""
    errors = [abs(ratio - 1) for one in found for ratio in one.step_ratios]
    error = median(errors) if errors else None
    least = min((one.share for one in found), default=None)
    if as_json:
        rows = [asdict(one) | {"share": one.share} for one in found]
        print_json({"answers": rows, "least_share": least, "median_step_error": error})
        return
    console = data_console()
    if least is None:
        console.print("no choice was measured beside another one")
        return
    print_table(console, COLUMNS, [_row(one) for one in found])
    good = sum(one.share >= 0.95 for one in found)
    console.print(f"\n{good} of {len(found)} choices reach 95 % of the best of their grid; the least {least:.0%}")
    if error is not None:
        console.print(f"step time, predicted / measured: median error {error:.1%}")


def _row(one: Answer) -> list[str]:
    ratio = median(one.step_ratios) if one.step_ratios else None
    return [
        one.model,
        format_bytes(one.cap_bytes) if one.cap_bytes else "CPU",
        str(one.max_length),
        one.chosen,
        f"{one.tokens_per_second:,.0f}",
        f"{one.best_tokens_per_second:,.0f}",
        str(one.tried),
        f"{one.share:.0%}",
        f"{ratio:.2f}" if ratio else "-",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 0, or 1 where no choice could be measured beside another one."""
    about = (__doc__ or "").splitlines()[0]
    return benchmark(
        argv, "plan_quality", about, ask=grids, points_of=lambda one: one[1], find=answers, tell=print_answers
    )


if __name__ == "__main__":
    sys.exit(main())
