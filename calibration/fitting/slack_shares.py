"""What torch's allocator holds beyond what is alive at the peak, in shares of the activations: from measured runs."""

from collections.abc import Sequence
from statistics import median

from calibration.fitting.judged_runs import JudgedRun
from profiles.fitted import Slack, SlackKind

USUAL = 0.6745
"""Half of a normal distribution lies within so many of its deviations from its middle."""

DIGITS = 3


def fit_slack(runs: Sequence[JudgedRun]) -> tuple[Slack, ...]:
    """The middle of the runs on one card that publish reserved memory and peak in the optimizer step.

    A few odd ones do not move it. What is cached beside the passes is simulated (`slack.py`).
    """
    alone = [one for one in runs if one.num_gpus == 1 and one.reserved_bytes]
    used = [one for one in alone if one.memory.binding_phase == "step"]
    return (_fitted("step", used),) if used else ()


def _fitted(kind: SlackKind, runs: Sequence[JudgedRun]) -> Slack:
    shares = [_share(one) for one in runs]
    middle = median(shares)
    return Slack(
        kind=kind,
        value=round(max(0.0, middle), DIGITS),
        spread=round(median(abs(share - middle) for share in shares) / USUAL, DIGITS),
        error=round(median(abs(_error(one, middle)) for one in runs), DIGITS),
        error_left_out=_left_out(runs),
        runs=len(runs),
        records=tuple(sorted({one.record for one in runs})),
    )


def _left_out(runs: Sequence[JudgedRun]) -> float | None:
    """The median error of reserved memory where each one who measured is left out; None where only one did."""
    if len({one.group for one in runs}) < 2:
        return None
    errors = []
    for one in runs:
        others = [_share(other) for other in runs if other.group != one.group]
        errors.append(abs(_error(one, median(others))))
    return round(median(errors), DIGITS)


def _share(one: JudgedRun) -> float:
    """Reserved less allocated memory, as measured where that was published, over the activations."""
    allocated = one.allocated_bytes or one.memory.allocated_bytes
    return ((one.reserved_bytes or 0) - allocated) / one.memory.activation_bytes


def _error(one: JudgedRun, share: float) -> float:
    """Of the reserved memory that comes out with `share`."""
    return (one.memory.allocated_bytes + share * one.memory.activation_bytes) / (one.reserved_bytes or 1) - 1
