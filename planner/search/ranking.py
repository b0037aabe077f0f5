"""The best configuration that fits, what else is worth a look, and why each other candidate lost.

Order of preference: fits before tight; then a frozen base on the cards; then the least lossy base, weights and
optimizer; then the simplest layout of the cards; then no package beside torch;
then speed; then, among those that are as fast, the fewest settings changed and the most headroom. The rows of an
optimizer step never change.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from planner.config.run_config import RunConfig
from planner.memory.estimate import MemoryEstimate, estimate
from planner.memory.verdict import Verdict, missing_bytes
from planner.search.candidate import Candidate, Judge, needs_package
from planner.search.request import Request
from planner.search.space import Group, Lossiness, complexity, groups, openings
from planner.step.step_spec import StepSpec
from planner.units import format_bytes
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

Estimator = Callable[[ModelProfile, StepSpec, GpuProfile | None], MemoryEstimate]

Prune = Callable[[Sequence[RunConfig], str], None]
"""Takes note of configurations that lost without being estimated, and why."""

SAME_SPEED = 0.02
"""Candidates whose predicted speeds differ by less cannot be told apart: the error of the speed model is larger."""

CLEARLY = 0.1
"""An alternative is worth a line if it is faster or smaller by at least this share."""

PREFERENCE: tuple[Verdict, ...] = ("fits", "tight")


@dataclass(frozen=True, slots=True)
class Loser:
    """A configuration that was not chosen, and why."""

    config: RunConfig
    reason: str


@dataclass(frozen=True, slots=True)
class Losers:
    """All that lost: those that were estimated, and those that could be left out, which are made when asked for."""

    beaten: tuple[Loser, ...] = ()
    left_out: tuple[tuple[Sequence[RunConfig], str], ...] = ()

    def __len__(self) -> int:
        return len(self.beaten) + sum(len(configs) for configs, _ in self.left_out)

    def __iter__(self) -> Iterator[Loser]:
        yield from self.beaten
        for configs, reason in self.left_out:
            yield from (Loser(config, reason) for config in configs)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The outcome of a search.

    `best` is None if no candidate fits, even tightly; then `closest` is the one that misses by the fewest bytes.
    `alternatives` are clearly faster or smaller than everything preferred to them, so they trade something for it.
    """

    best: Candidate | None
    closest: Candidate
    alternatives: tuple[Candidate, ...]
    losers: Losers

    @property
    def num_candidates(self) -> int:
        """Configurations that were compared."""
        return len(self.losers) + (self.best is not None)


def search(request: Request, estimator: Estimator = estimate, *, only_best: bool = False) -> SearchResult:
    """The best configuration for `request`, and how all others compare.

    A length or rank that the user left open shrinks only if nothing fits. With `only_best` no lossier base or weights
    and no attention that needs a package are tried once something fits: they cannot win, but are missed among the
    alternatives and losers. Raises ConfigError for knobs that contradict each other or the card.
    """
    judge = Judge(request, estimator)
    candidates: list[Candidate] = []
    left_out: list[tuple[Sequence[RunConfig], str]] = []

    def prune(configs: Sequence[RunConfig], why: str) -> None:
        if not only_best:
            left_out.append((configs, why))

    for max_length, rank in openings(request):
        for _, weights in groupby(
            groups(request, max_length, rank), key=lambda group: group.lossiness.without_optimizer
        ):
            _judge_optimizers(judge, weights, candidates, prune, only_best)
            if only_best and _some_fits(c for c in candidates if not c.fetches_base):
                break
        if _some_fits(candidates):
            break
    closest = min(candidates, key=lambda candidate: candidate.estimate.interval_bytes[1])
    ranked = _ranked(candidates)
    best = ranked[0] if ranked else None
    beaten = tuple(Loser(c.config, _reason(c, best, judge)) for c in candidates if c is not best)
    return SearchResult(best, closest, _alternatives(ranked), Losers(beaten, tuple(left_out)))


def _judge_optimizers(
    judge: Judge, alike: Iterable[Group], candidates: list[Candidate], prune: Prune, only_best: bool
) -> None:
    """Judge groups with the same weights. Once something fits, a lossier optimizer cannot win, so it is not tried."""
    found: list[Candidate] = []
    for _, tier in groupby(alike, key=lambda group: group.lossiness):
        tried = not _some_fits(found)
        for group in tier:
            if only_best and needs_package(group.rows[0].first) and _some_fit_as_installed(found):
                continue
            if only_best and _some_simpler_fits(group, found):
                continue
            if tried:
                _judge_group(judge, group, found, prune)
            else:
                for row in group.rows:
                    prune(row, f"lossier optimizer: {row.first.optim}")
    candidates.extend(found)


def _some_fits(candidates: Iterable[Candidate]) -> bool:
    return any(candidate.verdict == "fits" for candidate in candidates)


def _some_simpler_fits(group: Group, candidates: Iterable[Candidate]) -> bool:
    own = complexity(group.rows[0].first)
    return any(candidate.verdict == "fits" and candidate.complexity < own for candidate in candidates)


def _some_fit_as_installed(candidates: Iterable[Candidate]) -> bool:
    return _some_fits(candidate for candidate in candidates if not candidate.needs_package)


def _judge_group(judge: Judge, group: Group, candidates: list[Candidate], prune: Prune) -> None:
    """Judge the configurations of `group`, but for those that need more than one that is already too big."""
    width = len(group.rows[0])
    why = ""
    for row in group.rows:
        for column, config in enumerate(row[:width]):
            candidate = judge.judge(config, group.lossiness)
            candidates.append(candidate)
            if candidate.verdict == "no":
                width = column
                missing = format_bytes(missing_bytes(candidate.estimate, judge.usable))
                why = f"bigger than a candidate that already needs {missing} more"
                prune(row[column + 1 :], why)
                break
        else:
            prune(row[width:], why)


def _ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that fit, in the order of preference."""

    feasible = sorted((c for c in candidates if c.verdict != "no"), key=_preference)
    return [c for _, alike in groupby(feasible, key=_preference) for c in _by_speed(list(alike))]


def _preference(candidate: Candidate) -> tuple[int, int, int, bool, Lossiness, tuple[bool, bool, bool], bool]:
    config = candidate.config
    rank = config.lora.r if config.lora else 0
    size = PREFERENCE.index(candidate.verdict), -config.max_length, -rank
    return *size, candidate.fetches_base, candidate.lossiness, candidate.complexity, candidate.needs_package


def _by_speed(candidates: list[Candidate]) -> list[Candidate]:
    """The fastest first; those that are as fast as the fastest by simplicity and headroom."""
    fastest = max(candidate.pace for candidate in candidates)

    def key(candidate: Candidate) -> tuple[float, int, int]:
        slower = candidate.pace < fastest * (1 - SAME_SPEED)
        return (-candidate.pace if slower else -fastest, candidate.num_changes, candidate.estimate.process_bytes)

    return sorted(candidates, key=key)


def _alternatives(ranked: list[Candidate]) -> tuple[Candidate, ...]:
    kept: list[Candidate] = ranked[:1]
    for candidate in ranked[1:]:
        if candidate.verdict == kept[0].verdict and all(_stands_out(candidate, other) for other in kept):
            kept.append(candidate)
    return tuple(kept[1:])


def _stands_out(candidate: Candidate, other: Candidate) -> bool:
    """Whether `candidate` is clearly faster or smaller than `other`, which is preferred to it."""
    faster = candidate.pace > other.pace * (1 + CLEARLY)
    return faster or candidate.estimate.process_bytes < other.estimate.process_bytes * (1 - CLEARLY)


def _reason(candidate: Candidate, best: Candidate | None, judge: Judge) -> str:
    if judge.misses_host_memory(candidate.estimate):
        return f"needs {format_bytes(candidate.estimate.host_bytes)} of host memory in each machine"
    missing = format_bytes(missing_bytes(candidate.estimate, judge.usable))
    if candidate.verdict == "no" or best is None:
        return f"needs {missing} more"
    if candidate.verdict != best.verdict:
        return f"tight: may need {missing} more"
    if candidate.config.max_length != best.config.max_length:
        return f"cuts rows to {candidate.config.max_length} tokens"
    return _less_preferred(candidate, best) or _not_faster(candidate, best)


def _less_preferred(candidate: Candidate, best: Candidate) -> str | None:
    """What speaks against `candidate` whatever its speed."""
    if candidate.fetches_base > best.fetches_base:
        return "fetches the base from host memory in each pass"
    if candidate.lossiness > best.lossiness:
        return _lossier(candidate, best)
    if candidate.complexity > best.complexity:
        return "shares out weights or states without need"
    return "needs the flash-attn package" if candidate.needs_package > best.needs_package else None


def _not_faster(candidate: Candidate, best: Candidate) -> str:
    if candidate.pace < best.pace * (1 - SAME_SPEED):
        return _slower(candidate, best)
    if candidate.num_changes > best.num_changes:
        return "as fast, with more settings changed"
    return f"as fast, with {format_bytes(candidate.estimate.process_bytes - best.estimate.process_bytes)} less headroom"


def _lossier(candidate: Candidate, best: Candidate) -> str:
    config = candidate.config
    if candidate.lossiness.base > best.lossiness.base:
        return f"lossier base: {config.quantization}"
    if candidate.lossiness.weights > best.lossiness.weights:
        return f"lossier weights: {config.dtype}"
    return f"lossier optimizer: {config.optim}"


def _slower(candidate: Candidate, best: Candidate) -> str:
    if candidate.tokens_per_second is None or best.tokens_per_second is None:
        return f"about {1 - candidate.pace / best.pace:.0%} slower, as a card of known speed would run it"
    return f"slower: {candidate.tokens_per_second:,.0f} vs {best.tokens_per_second:,.0f} tokens/s"
