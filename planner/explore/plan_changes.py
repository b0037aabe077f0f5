"""What is different between two answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from planner.memory.verdict import Verdict
from planner.search.planning import Plan


@dataclass(frozen=True, slots=True)
class KnobChange:
    """A knob of the run file, before and after."""

    knob: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class PlanChanges:
    """What `after` has other than `before`.

    Bytes of the process, negative for less; the factor of the speed, None where one of them is unknown; the knobs of
    the configurations that were chosen, or come closest.
    """

    before: Verdict
    after: Verdict
    bytes: int
    speedup: float | None
    knobs: tuple[KnobChange, ...]

    def __bool__(self) -> bool:
        return self.before != self.after or bool(self.bytes) or bool(self.knobs)


def plan_changes(before: Plan, after: Plan) -> PlanChanges:
    """The differences between two plans."""
    paces = before.tokens_per_second, after.tokens_per_second
    return PlanChanges(
        before=before.verdict,
        after=after.verdict,
        bytes=after.estimate.process_bytes - before.estimate.process_bytes,
        speedup=paces[1] / paces[0] if paces[0] and paces[1] else None,
        knobs=tuple(_different(before.closest.model_dump(mode="json"), after.closest.model_dump(mode="json"))),
    )


def _different(before: Mapping[str, Any], after: Mapping[str, Any], section: str = "") -> Iterator[KnobChange]:
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _different(old, new, f"{section}{name}.")
        elif old != new:
            yield KnobChange(f"{section}{name}", old, new)
