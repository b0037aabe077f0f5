"""What the page shows for a question, in words and numbers that only have to be laid out."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

from planner.config.run_config import RunConfig
from planner.config.run_file import run_file_text
from planner.explore.plan_changes import PlanChanges, plan_changes
from planner.explore.what_if import Effect, knob_effects
from planner.memory.verdict import Verdict
from planner.picture.memory_picture import memory_picture
from planner.picture.svg import svg
from planner.predict.prediction import Prediction, Target, predict
from planner.report.answer import (
    checkpoint_words,
    layout_words,
    memory_sentence,
    method_words,
    setting_facts,
    verdict_sentence,
)
from planner.report.run_file_header import run_file_header
from planner.search.candidate import Candidate
from planner.search.planning import Plan
from planner.search.ranking import SAME_SPEED
from planner.serve.page_grid import PageGrid, page_grid
from planner.serve.page_question import PageQuestion
from planner.units import format_bytes, format_seconds
from profiles.errors import UnsupportedError

WIDE, NARROW = 760, 340
"""Pixels of the two pictures of the memory: for a screen, and for a phone."""

WORDS: dict[Verdict, str] = {"fits": "Yes", "tight": "Tight", "no": "No"}
SHOWN_EFFECTS = 12

DECIDED = (
    "quantization",
    "optim",
    "per_device_train_batch_size",
    "gradient_checkpointing",
    "checkpoint_every_n_layers",
    "checkpoint_offload",
    "loss",
)
"""Knobs in which the configurations of one answer differ, beside method and length."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that matters, and what it is."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Option:
    """Something else that could be run, and the link that asks for it."""

    what: str
    settings: str
    needs: str
    pace: str
    against: str
    query: str


@dataclass(frozen=True, slots=True)
class PageAnswer:
    """An answer, ready for the page."""

    question: PageQuestion
    plan: Plan
    changes: PlanChanges | None

    @property
    def word(self) -> str:
        """The verdict in one word."""
        return WORDS[self.plan.verdict]

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        return verdict_sentence(self.plan)

    @property
    def memory(self) -> str:
        """The memory behind it."""
        return memory_sentence(self.plan)

    @property
    def evidence(self) -> str | None:
        """On which measured runs the answer rests."""
        return self.plan.evidence.words if self.plan.evidence else None

    @property
    def figures(self) -> list[Figure]:
        """Memory, speed, and what the run takes."""
        plan, cost = self.plan, self.plan.cost
        low, high = (format_bytes(edge) for edge in plan.estimate.interval_bytes)
        found = [
            Figure(
                "memory",
                format_bytes(plan.estimate.process_bytes),
                f"{low} to {high} of {format_bytes(plan.usable_bytes)}",
            )
        ]
        if plan.config is not None and plan.tokens_per_second:
            found.append(Figure("speed", f"{plan.tokens_per_second:,.0f} tokens/s", "predicted, without padding"))
        if cost is not None and cost.seconds is not None:
            found.append(Figure("time", format_seconds(cost.seconds), f"{cost.num_steps:,} steps"))
        if cost is not None and cost.usd is not None:
            found.append(Figure("cost", f"{cost.usd:,.2f} USD", "median price of clouds"))
        return found

    @property
    def changed_memory(self) -> str:
        """How much more or less memory it is now."""
        return _signed(self.changes.bytes) if self.changes else ""

    @property
    def changed_speed(self) -> str:
        """How much faster or slower it is now, if that can be told."""
        speedup = self.changes.speedup if self.changes else None
        return f"{speedup - 1:+.0%} speed" if speedup and abs(speedup - 1) >= SAME_SPEED else ""

    @property
    def changed_knobs(self) -> list[tuple[str, str, str]]:
        """The knobs that moved, with both values."""
        knobs = self.changes.knobs if self.changes else ()
        return [(one.knob, _value(one.before), _value(one.after)) for one in knobs]

    @property
    def pictures(self) -> tuple[str, str]:
        """The memory of each phase against the card, for a wide and for a narrow screen."""
        wide, narrow = (memory_picture(self.plan.estimate, self.plan.usable_bytes, width) for width in (WIDE, NARROW))
        return svg(wide), svg(narrow)

    @property
    def components(self) -> list[tuple[str, str, str]]:
        """Name, size and arithmetic of what is alive at the peak, the largest first."""
        parts = sorted(self.plan.estimate.components, key=lambda part: -part.bytes)
        return [(part.name, format_bytes(part.bytes), part.why) for part in parts]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """What was chosen, in words."""
        return setting_facts(self.plan.config, None, None) if self.plan.config else []

    @property
    def run_file(self) -> str | None:
        """The run file, or None if nothing fits."""
        config = self.plan.config
        return run_file_text(config, run_file_header(self.plan, config)) if config else None

    @property
    def options_title(self) -> str:
        """What the options are."""
        return "What could be traded" if self.plan.config else "The nearest changes that fit"

    @property
    def options(self) -> list[Option]:
        """The alternatives, or what would make it fit."""
        if self.plan.config is None:
            return list(self._nearest())
        return [self._alternative(candidate) for candidate in self.plan.alternatives]

    @property
    def effects(self) -> list[tuple[str, str, str]]:
        """What each knob alone would change: change, bytes, speed."""
        prediction = self._prediction()
        effects = knob_effects(prediction) if prediction else ()
        return [_effect(effect) for effect in effects[:SHOWN_EFFECTS]]

    @property
    def grid(self) -> PageGrid:
        """The map of length and micro-batch."""
        return page_grid(self.question, self.plan)

    @staticmethod
    def short(length: int) -> str:
        """A number of tokens, as short as the head of a column."""
        return f"{length // 1024}k" if length % 1024 == 0 else f"{length:,}"

    def _prediction(self) -> Prediction | None:
        request = self.plan.request
        try:
            target = Target(request.model, request.gpu, request.free_bytes, experience=request.experience)
            return predict(self.plan.closest, target)
        except UnsupportedError:
            return None

    def _nearest(self) -> Iterator[Option]:
        for change in self.plan.nearest:
            candidate = change.candidate
            yield Option(
                what=change.what,
                settings=f"{method_words(candidate.config)}, {candidate.config.max_length:,} tokens",
                needs=format_bytes(candidate.estimate.process_bytes),
                pace=pace_words(candidate.tokens_per_second),
                against="",
                query=self._query_of(candidate, change.gpu.name if change.gpu else None),
            )

    def _alternative(self, candidate: Candidate) -> Option:
        config = candidate.config
        size = candidate.estimate.process_bytes - self.plan.estimate.process_bytes
        speed, own = candidate.tokens_per_second, self.plan.tokens_per_second
        return Option(
            what=method_words(config),
            settings=", ".join(_settings(config, self.plan.config)),
            needs=format_bytes(candidate.estimate.process_bytes),
            pace=pace_words(speed),
            against=_signed(size) + (f", {speed / own - 1:+.0%}" if speed and own else ""),
            query=self._query_of(candidate, None),
        )

    def _query_of(self, candidate: Candidate, gpu: str | None) -> str:
        """The link that pins what `candidate` decides, on another card if one is named."""
        config = candidate.config
        layout = {"parallel": config.parallel.model_dump(mode="json")} if config.parallel else {}
        if gpu is not None:
            numbers = {"num_gpus": config.num_gpus, "num_nodes": config.num_nodes}
            cards = {name: str(number) if number > 1 else "" for name, number in numbers.items()}
            return self.question.with_fields(gpu=gpu, **cards).with_settings(layout).query
        knobs = {name: getattr(config, name) for name in DECIDED}
        fields = {"method": config.method, "max_length": str(config.max_length)}
        return self.question.with_fields(**fields).with_settings(knobs | layout).query


def page_answer(question: PageQuestion, plan: Plan, before: Plan | None) -> PageAnswer:
    """The answer `plan`, and what is different from the answer `before`."""
    changes = plan_changes(before, plan) if before else None
    # Both pictures and the table show the same parts.
    known = replace(plan.estimate, explain=cache(plan.estimate.explain))
    return PageAnswer(question, replace(plan, estimate=known), changes or None)


def _value(value: object) -> str:
    """A value of the run file, short enough to stand in a line."""
    if isinstance(value, dict):
        return "set"
    return "none" if value is None else str(value)


def _settings(config: RunConfig, chosen: RunConfig | None) -> Iterator[str]:
    """What is decided in `config`; the layout of the cards where it is another than in the configuration `chosen`."""
    yield f"{config.per_device_train_batch_size} x {config.gradient_accumulation_steps}"
    yield checkpoint_words(config)
    yield config.optim
    if config.parallel is not None and (chosen is None or config.parallel != chosen.parallel):
        yield layout_words(config)


def _effect(effect: Effect) -> tuple[str, str, str]:
    if effect.speedup is None:
        return effect.change, _signed(effect.bytes), ""
    same = abs(effect.speedup - 1) < SAME_SPEED
    return effect.change, _signed(effect.bytes), "same" if same else f"{effect.speedup - 1:+.0%}"


def _signed(num_bytes: int) -> str:
    return f"{'-' if num_bytes < 0 else '+'}{format_bytes(abs(num_bytes))}"


def pace_words(tokens_per_second: float | None) -> str:
    """Tokens a second, or nothing where that is unknown."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second else ""
