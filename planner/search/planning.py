"""The answer to a request: the configuration, what is predicted of it, and what was assumed."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from planner.config.run_config import RunConfig
from planner.memory.estimate import MemoryEstimate, estimate
from planner.memory.verdict import Verdict
from planner.records.experience import Lesson, lesson_words
from planner.search.candidate import Candidate
from planner.search.common_cards import CardAnswer
from planner.search.nearest import Change, nearest_changes, shortfall
from planner.search.ranking import Estimator, Losers, search
from planner.search.request import Request
from planner.speed.step_time import SpeedEstimate
from planner.step.hardware import wheel_note
from planner.units import format_bytes
from profiles.fp16_overflow import fp16_overflow_source
from profiles.interconnect import interconnect_facts
from profiles.model_catalog import reference_shape
from profiles.residuals import Evidence, residuals

if TYPE_CHECKING:
    from planner.picture.shapes import Picture


WARMUP_SHARE = 0.03
"""Share of the steps in which the learning rate rises (warmup_ratio of the published commands of Alpaca and QLoRA)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What the whole run takes.

    Optimizer steps; seconds where the speed of the card is known; USD at its median price where it has one; the share
    of the tokens that are padding, where the lengths of the rows are known.
    """

    num_steps: int
    seconds: float | None
    usd: float | None
    padding_share: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to a request.

    With verdict `no`, `config` is None, `estimate` is that of the `closest` configuration, `shortfall` says in a
    sentence what is missing, and `nearest` what would make it fit. `notes` are assumptions and rules that were
    applied. Where no card was named, `cards` are the answers for the common ones, and the plan is that of the
    cheapest that does.
    """

    request: Request
    verdict: Verdict
    config: RunConfig | None
    closest: RunConfig
    estimate: MemoryEstimate
    usable_bytes: int
    speed: SpeedEstimate | None
    tokens_per_second: float | None
    lesson: Lesson
    evidence: Evidence | None
    cost: Cost | None
    alternatives: tuple[Candidate, ...]
    losers: Losers
    shortfall: str | None
    nearest: tuple[Change, ...]
    notes: tuple[str, ...]
    cards: tuple[CardAnswer, ...] = ()

    @property
    def picture(self) -> "Picture":
        """The memory of each phase against the card."""
        from planner.picture.memory_picture import memory_picture

        return memory_picture(self.estimate, self.usable_bytes)

    @property
    def caption(self) -> str:
        """The words above the picture."""
        gpu = self.request.gpu.name if self.request.gpu else "this CPU"
        method = self.config.method if self.config else self.request.method
        size = f"{format_bytes(self.estimate.process_bytes)} of {format_bytes(self.usable_bytes)}"
        return f"{self.verdict}: {self.request.model.hf_id} on {gpu}, {method}, {size}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from planner.picture.svg import figure

        return figure(self.caption, self.picture)


def make_plan(request: Request, estimator: Estimator = estimate, *, only_best: bool = False) -> Plan:
    """The best plan for `request`; with `only_best` neither some alternatives nor nearest changes are looked for.

    Raises ConfigError for knobs that contradict each other or the card.
    """
    result = search(request, estimator, only_best=only_best)
    best, usable = result.best, request.usable_bytes
    shown = best or result.closest
    return Plan(
        request=request,
        verdict=shown.verdict,
        config=_with_warmup(request, best.config) if best else None,
        closest=shown.config,
        estimate=shown.estimate,
        usable_bytes=usable,
        speed=shown.speed,
        tokens_per_second=shown.tokens_per_second,
        lesson=request.experience.lesson(request.gpu, shown.config),
        evidence=residuals().evidence(request.gpu, shown.config.method) if request.gpu else None,
        cost=run_cost(request, best) if best else None,
        alternatives=result.alternatives,
        losers=result.losers,
        shortfall=None if best else shortfall(shown.estimate, usable, request.cluster.host_memory_bytes),
        nearest=() if best or only_best else nearest_changes(request, estimator),
        notes=tuple(_notes(request, shown.config, planned=best is not None)),
    )


def run_cost(request: Request, best: Candidate) -> Cost | None:
    """What a run of `best` takes on the card of `request`; None if the number of steps is not known."""
    num_steps = _num_steps(request, best.config)
    if num_steps is None:
        return None
    padding = best.padding_share if request.lengths else None
    if best.speed is None:
        return Cost(num_steps, None, None, padding)
    seconds = num_steps * best.speed.seconds_per_step
    price = request.cluster.usd_per_hour(request.gpu)
    return Cost(num_steps, seconds, price * seconds / 3600 if price else None, padding)


def _num_steps(request: Request, config: RunConfig) -> int | None:
    """Optimizer steps of the run; None if neither the data nor the number of steps is known."""
    if config.max_steps is not None:
        return config.max_steps
    rows = _num_rows(request, config)
    if rows is None:
        return None
    trained = rows * (1 - (config.data.eval_fraction if config.data else 0))
    return ceil(ceil(trained / config.effective_batch_size) * config.num_train_epochs)


def _num_rows(request: Request, config: RunConfig) -> int | None:
    """Rows that the model sees in an epoch; those of unknown length are not packed."""
    if request.lengths is None:
        return request.num_rows
    return request.lengths.num_packed(config.max_length) if config.packing else request.lengths.num_rows


def _with_warmup(request: Request, config: RunConfig) -> RunConfig:
    num_steps = _num_steps(request, config)
    if "warmup_steps" in request.knobs or num_steps is None:
        return config
    return config.model_copy(update={"warmup_steps": ceil(WARMUP_SHARE * num_steps)})


def _notes(request: Request, config: RunConfig, planned: bool) -> Iterator[str]:
    """What was assumed or decided without being asked; the length of what does not fit is no decision."""
    if reference := reference_shape(request.model_name or ""):
        yield f"{reference.size} is answered for {reference.hf_id}: {reference.why}"
    if planned:
        yield from _length_notes(request, config)
    yield from _precision_notes(request, config)
    if taught := lesson_words(request.experience, request.gpu, config):
        yield taught
    if "attn_implementation" not in request.knobs:
        yield from _attention_notes(config)
    yield from _cluster_notes(request, config)
    if note := wheel_note(request.gpu):
        yield note
    if request.gpu is not None and not request.gpu.memory_measured:
        yield f"the memory of {request.gpu.name} is bounded from its listed size, not read from torch"


def _cluster_notes(request: Request, config: RunConfig) -> Iterator[str]:
    """What is taken for granted of the machines."""
    cluster = request.cluster
    if cluster.num_nodes > 1 and cluster.network_bytes_per_s is None:
        assumed = interconnect_facts().network.assumed_bytes_per_s * 8 / 1e9
        yield f"the network between machines is taken to have {assumed:.0f} Gbit/s; the speed depends on it"
    if config.parallel and config.parallel.offload != "none" and cluster.host_memory_bytes is None:
        yield "the main memory of the machine is not known; see what the offload needs of it"
    if config.parallel and config.parallel.splits_work:
        yield "cards that split products or rows are planned and not launched; an engine that does is torchtitan"
    if cluster.world_size > 1 and request.free_bytes is not None and cluster.instance is None:
        yield f"planned for the card with the least free memory of the {cluster.num_gpus} here"


def _attention_notes(config: RunConfig) -> Iterator[str]:
    if config.attn_implementation == "eager":
        yield "attention is eager: the model's code cannot use torch's fused attention"
    if config.attn_implementation == "flash_attention_2":
        yield "attention needs the flash-attn package: pip install flash-attn --no-build-isolation"


def _length_notes(request: Request, config: RunConfig) -> Iterator[str]:
    length, limit = config.max_length, request.model.max_position_embeddings
    if limit is not None and length > limit:
        yield f"max_length {length} is more than the {limit} positions that the model was trained on"
    if request.lengths is not None:
        if cut := request.lengths.share_cut(length):
            yield f"max_length {length} cuts {cut:.1%} of the rows; the longest has {request.lengths.longest} tokens"
    elif "max_length" not in request.knobs:
        yield f"rows are taken to be as long as max_length {length}; the lengths of your data would tell"


def _precision_notes(request: Request, config: RunConfig) -> Iterator[str]:
    if request.gpu is None or request.gpu.supports_bf16:
        return
    if config.mixed_precision == "fp16":
        yield f"float16 with a scaled loss: {request.gpu.name} does not compute in bfloat16"
    elif source := fp16_overflow_source(request.model.model_type):
        yield f"float32: {request.gpu.name} does not compute in bfloat16, and the model overflows in float16 ({source})"
