"""What a process holds beside torch's memory: fitted from records, and as messages in public have it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from calibration.measuring.measurement import Measurement
from planner.units import MIB
from profiles.fitted import MeasuredContext
from profiles.gpu_catalog import find_gpu
from profiles.overheads import GenerationContext, SeenContext, overheads


def fit_contexts(measurements: Mapping[str, Sequence[Measurement]]) -> tuple[MeasuredContext, ...]:
    """The process less what torch reserved, by card: the most that was seen, as more memory is what a run dies of."""
    seen: dict[str, list[tuple[int, str]]] = {}
    for name, found in measurements.items():
        for one in found:
            measured, card = one.attempt.measured, one.point.config.gpu
            if card and measured and measured.process_bytes and measured.reserved_bytes:
                context = measured.process_bytes - measured.reserved_bytes
                if context > 0:
                    seen.setdefault(find_gpu(card).name, []).append((context, name))
    return tuple(
        MeasuredContext(
            gpu=card,
            mib=-(-max(contexts)[0] // MIB),
            least_mib=max(1, min(contexts)[0] // MIB),
            runs=len(contexts),
            records=tuple(sorted({name for _, name in contexts})),
        )
        for card, contexts in sorted(seen.items())
    )


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
