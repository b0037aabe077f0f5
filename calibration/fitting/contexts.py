"""What a process holds beside torch's memory: fitted from records, and as messages in public have it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from calibration.measuring.measurement import Measurement
from planner.units import MIB
from profiles.fitted import MeasuredContext
from profiles.gpu_catalog import find_gpu
from profiles.overheads import GenerationContext, SeenContext, overheads


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one run held beside torch's memory, in MiB, the model that it trained, and the file of its record."""

    mib: int
    model: str
    record: str


def fit_contexts(measurements: Mapping[str, Sequence[Measurement]]) -> tuple[MeasuredContext, ...]:
    """The process less what torch reserved, by card: the most that was seen, as more memory is what a run dies of."""
    seen: dict[str, list[_Seen]] = {}
    for name, found in measurements.items():
        for one in found:
            measured, config = one.attempt.measured, one.point.config
            if config.gpu and measured and measured.process_bytes and measured.reserved_bytes:
                mib = -(-(measured.process_bytes - measured.reserved_bytes) // MIB)
                if mib > 0:
                    seen.setdefault(find_gpu(config.gpu).name, []).append(_Seen(mib, config.model, name))
    return tuple(
        MeasuredContext(
            gpu=card,
            mib=max(run.mib for run in runs),
            least_mib=min(run.mib for run in runs),
            above_left_out_mib=_above_left_out(runs),
            runs=len(runs),
            records=tuple(sorted({run.record for run in runs})),
        )
        for card, runs in sorted(seen.items())
    )


def _above_left_out(runs: Sequence[_Seen]) -> int | None:
    """How far runs of a model lie above the most of all other models, at the worst; None where only one ran."""
    models = {run.model for run in runs}
    if len(models) < 2:
        return None
    most = {model: max(run.mib for run in runs if run.model == model) for model in models}
    return max(0, *(mib - max(other for name, other in most.items() if name != model) for model, mib in most.items()))


@dataclass(frozen=True, slots=True)
class SeenLine:
    """A card of which messages were seen, what is planned for it, and what would be without them, in MiB."""

    seen: SeenContext
    planned_mib: int
    left_out_mib: int


def seen_contexts() -> Iterator[SeenLine]:
    """All cards of which messages were seen."""
    context = overheads().context
    for card in context.cards:
        gpu = find_gpu(card.names[0])
        covering = (row.mib for row in context.generations if row.covers(gpu.compute_capability, gpu.gfx_target))
        left_out = next(covering, context.unknown_mib)
        yield from (SeenLine(one, card.mib, left_out) for one in card.seen)
    for row in context.generations:
        yield from (SeenLine(one, row.mib, _without(one, row)) for one in row.seen)


def _without(left_out: SeenContext, row: GenerationContext) -> int:
    """The high end of the other cards of a generation, or of all where there are none."""
    return max((one.mib[1] for one in row.seen if one is not left_out), default=overheads().context.unknown_mib)
