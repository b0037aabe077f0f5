"""What a peer's file means: knobs of a run, and how the peer's step differs from its usual one."""

from dataclasses import dataclass, field
from typing import Any

from planner.peers.keys import Keys
from profiles.errors import ConfigError
from profiles.optimizer import find_optimizer

HELD_OUT = 0.1
"""Stands for the share of rows to evaluate on where a file names another data set for that; the share costs nothing."""

SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class Reading:
    """Knobs of a `RunConfig`, and values of a `TrainerProfile` that the file changes."""

    knobs: dict[str, Any]
    traits: dict[str, Any] = field(default_factory=dict)


def data_knobs(path: str | None, evaluation_share: float) -> dict[str, Any] | None:
    """The data section of a run: where rows are, and what share of them is held out, 0 without evaluation."""
    if path is None and not evaluation_share:
        return None
    return {"path": path or "as in the file", "eval_fraction": evaluation_share}


def schedule(name: object) -> str:
    """The schedule of the learning rate, or one like it: it costs nothing."""
    return name if isinstance(name, str) and name in SCHEDULES else "cosine"


def optimizer(keys: Keys, key: str) -> str:
    """The optimizer that `key` names. Raises ConfigError for one whose states are not described."""
    name = str(getattr(keys(key), "value", keys(key)))
    try:
        find_optimizer(name)
    except ConfigError as error:
        raise keys.refuse(key, "what this optimizer keeps is not described", hint=error.hint) from error
    return name


def counted(value: object) -> int | None:
    """A number of steps; None for a share of them, for nothing, or for what stands for nothing (-1, 0)."""
    return int(value) if isinstance(value, int | float) and value >= 1 else None
