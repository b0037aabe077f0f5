"""Errors of predicted memory before and after what stands beside the tensors: workspaces, and the allocator's slack."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from calibration.fitting.judged_runs import JudgedRun
from calibration.fitting.slack_shares import fit_slack
from calibration.fitting.timed_steps import length_words
from profiles.fitted import fitted

WORKSPACES = "cuBLAS workspaces"
"""Their name among the components of an estimate."""


@dataclass(frozen=True, slots=True)
class MemoryErrors:
    """Median errors of some runs, as shares of what was measured; None where nobody measured it.

    Of allocated memory without workspaces and with them; of reserved memory if the allocator held no more than is
    alive, with its slack, and with a slack that was fitted without the runs on this card. Of the slack only the share
    of the optimizer is fitted on runs, so `left_out` differs from `reserved_after` where the optimizer has the peak.
    """

    card: str
    method: str
    tokens: str
    runs: int
    allocated_before: float | None
    allocated_after: float | None
    reserved_before: float | None
    reserved_after: float | None
    reserved_left_out: float | None

    @property
    def shares(self) -> tuple[str, ...]:
        """The errors as they are printed."""
        errors = (
            self.allocated_before,
            self.allocated_after,
            self.reserved_before,
            self.reserved_after,
            self.reserved_left_out,
        )
        return tuple("-" if error is None else f"{error:.1%}" for error in errors)


def memory_errors(runs: Sequence[JudgedRun]) -> list[MemoryErrors]:
    """By card, method and length, and last of all together; runs that measured nothing, as those that ran out, not."""
    groups: dict[tuple[str, str, int], list[JudgedRun]] = {}
    for one in runs:
        if one.allocated_bytes or one.reserved_bytes:
            groups.setdefault((_card(one), one.method, (one.step.seq_len - 1).bit_length()), []).append(one)
    shares = {card: _share_without(card, runs) for card in {_card(one) for one in runs}}
    lines = [_errors(card, method, own, shares) for (card, method, _), own in sorted(groups.items())]
    return [*lines, _errors("all", "all", [one for own in groups.values() for one in own], shares)]


def _errors(card: str, method: str, runs: Sequence[JudgedRun], shares: Mapping[str, float]) -> MemoryErrors:
    allocated = [(one, one.allocated_bytes) for one in runs if one.allocated_bytes]
    reserved = [(one, one.reserved_bytes) for one in runs if one.reserved_bytes]
    return MemoryErrors(
        card=card,
        method=method,
        tokens="all" if method == "all" else length_words(max(one.step.seq_len for one in runs)),
        runs=len(runs),
        allocated_before=_median(_without_workspaces(one) / size - 1 for one, size in allocated),
        allocated_after=_median(one.memory.allocated_bytes / size - 1 for one, size in allocated),
        reserved_before=_median(one.memory.allocated_bytes / size - 1 for one, size in reserved),
        reserved_after=_median(one.memory.reserved_bytes / size - 1 for one, size in reserved),
        reserved_left_out=_median(_reserved_with(one, shares[_card(one)]) / size - 1 for one, size in reserved),
    )


def _median(errors: Iterable[float]) -> float | None:
    found = [abs(error) for error in errors]
    return median(found) if found else None


def _card(one: JudgedRun) -> str:
    return one.gpu.name if one.num_gpus == 1 else f"{one.num_gpus} x {one.gpu.name}"


def _without_workspaces(one: JudgedRun) -> int:
    workspaces = sum(part.bytes for part in one.memory.components if part.name == WORKSPACES)
    return one.memory.allocated_bytes - workspaces


def _share_without(card: str, runs: Sequence[JudgedRun]) -> float:
    """The optimizer's slack by the runs of other cards; 0 if there are none."""
    slack = fit_slack([one for one in runs if _card(one) != card])
    return slack[0].value if slack else 0.0


def _reserved_with(one: JudgedRun, share: float) -> float:
    """Reserved memory with this slack of the optimizer, in shares of the activations."""
    if one.memory.binding_phase != "step":
        return one.memory.reserved_bytes
    return one.memory.reserved_bytes + (share - fitted().slack_share("step")) * one.memory.activation_bytes
