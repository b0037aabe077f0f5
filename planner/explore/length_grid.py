"""What a plan comes to with longer or shorter rows, and with more or fewer of them at once."""

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from planner.config.run_config import RunConfig
from planner.memory.estimate import estimate
from planner.search.candidate import Candidate, Judge
from planner.search.planning import Plan
from planner.search.space import Lossiness
from profiles.errors import InputError

LENGTHS = tuple(1 << power for power in range(8, 18))
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
MOST_LENGTHS = 8

NOTHING_LOST = Lossiness(0, 0, 0)
"""The cells of a grid are compared in memory only."""


@dataclass(frozen=True, slots=True)
class LengthGrid:
    """The configuration of a plan at each of `lengths` (columns) and `micro_batches` (rows).

    A cell is None where the objective or the model's positions allow no such row; the other settings stay, and so do
    the rows of an optimizer step, unless one micro-batch has more.
    """

    lengths: tuple[int, ...]
    micro_batches: tuple[int, ...]
    cells: tuple[tuple[Candidate | None, ...], ...]


def length_grid(plan: Plan) -> LengthGrid:
    """The memory of `plan`, fitting or not, over length and micro-batch, an estimate for each cell."""
    judge = Judge(plan.request, estimate)
    lengths = _lengths(plan)
    batches = tuple(sorted({*MICRO_BATCHES, plan.closest.per_device_train_batch_size}))
    knobs = plan.closest.model_dump()
    cells = tuple(tuple(_cell(judge, plan, knobs, length, batch) for length in lengths) for batch in batches)
    return LengthGrid(lengths, batches, cells)


def _lengths(plan: Plan) -> tuple[int, ...]:
    """Powers of two up to the positions of the model, those around the plan's own length, and that."""
    own, limit = plan.closest.max_length, plan.request.model.max_position_embeddings or LENGTHS[-1]
    known = sorted({length for length in (*LENGTHS, limit) if length <= limit} | {own})
    while len(known) > MOST_LENGTHS:
        known.pop(0 if known.index(own) > len(known) // 2 else -1)
    return tuple(known)


def _cell(judge: Judge, plan: Plan, knobs: dict[str, Any], length: int, batch: int) -> Candidate | None:
    effective = plan.closest.effective_batch_size // plan.closest.data_parallel_size
    moved = {
        "max_length": length,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "gradient_accumulation_steps": max(1, effective // batch),
    }
    try:
        config = RunConfig.model_validate(knobs | moved)
        return judge.weigh(config, NOTHING_LOST)
    except (ValidationError, InputError):
        return None
