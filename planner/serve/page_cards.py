"""The same question on the common cards: what each answers, how long it takes there, and what it costs."""

from dataclasses import dataclass

from planner.memory.verdict import Verdict
from planner.report.answer import method_words
from planner.search.common_cards import CardAnswer, ask_common_cards
from planner.search.planning import Plan, run_cost
from planner.serve.page_answer import WORDS, pace_words
from planner.serve.page_question import PageQuestion
from planner.units import format_bytes, format_seconds


@dataclass(frozen=True, slots=True)
class CardLine:
    """The answer on one card."""

    name: str
    verdict: Verdict
    word: str
    method: str
    needs: str
    usable: str
    pace: str
    per_hour: str
    time: str
    cost: str
    per_million: str
    query: str
    cheapest: bool


def card_lines(question: PageQuestion, plan: Plan) -> list[CardLine]:
    """The same question on the common cards, with time and cost."""
    answers = plan.cards or ask_common_cards(plan.request)
    costs = [
        one.usd_per_million_tokens for one in answers if one.candidate.verdict == "fits" and one.usd_per_million_tokens
    ]
    return [_card_line(question, plan, one, min(costs, default=None)) for one in answers]


def _card_line(question: PageQuestion, plan: Plan, one: CardAnswer, least: float | None) -> CardLine:
    candidate, price, each = one.candidate, one.gpu.price, one.usd_per_million_tokens
    cost = run_cost(plan.request.on(one.gpu), candidate) if one.fits else None
    return CardLine(
        name=one.gpu.name,
        verdict=candidate.verdict,
        word=WORDS[candidate.verdict].lower(),
        method=method_words(candidate.config),
        needs=format_bytes(candidate.estimate.process_bytes),
        usable=format_bytes(one.gpu.memory_bytes),
        pace=pace_words(candidate.tokens_per_second) if one.fits else "",
        per_hour=f"{price.median_usd_per_hour:.2f}" if price else "",
        time=format_seconds(cost.seconds) if cost and cost.seconds is not None else "",
        cost=f"{cost.usd:,.2f}" if cost and cost.usd is not None else "",
        per_million=f"{each:.2f}" if each and one.fits else "",
        query=question.with_fields(gpu=one.gpu.name).query,
        cheapest=one.fits and each is not None and each == least,
    )
