"""One request put to the cards that people have or rent, to see which of them would do."""

from collections.abc import Sequence
from dataclasses import dataclass

from planner.search.candidate import Candidate
from planner.search.ranking import search
from planner.search.request import Request
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu

COMMON_CARDS = (
    "T4",
    "V100-SXM2-16GB",
    "L4",
    "RTX 3090",
    "RTX 4090",
    "A10G",
    "L40S",
    "A100-SXM4-40GB",
    "A100-SXM4-80GB",
    "H100-SXM5-80GB",
    "H200-SXM-141GB",
)


@dataclass(frozen=True, slots=True)
class CardAnswer:
    """The best configuration on a card, or the closest to fitting if none does."""

    gpu: GpuProfile
    candidate: Candidate

    @property
    def usd_per_million_tokens(self) -> float | None:
        """What a million tokens without padding cost; None where price or speed are unknown."""
        pace, price = self.candidate.tokens_per_second, self.gpu.price
        cards = self.candidate.config.world_size
        return price.median_usd_per_hour * cards / 3600 / pace * 1e6 if pace and price else None

    @property
    def fits(self) -> bool:
        """Whether the card would do, tightly or not."""
        return self.candidate.verdict != "no"


def ask_common_cards(request: Request) -> tuple[CardAnswer, ...]:
    """What `request` comes to on each of the common cards that can do what it pins.

    Raises ConfigError if no card can.
    """
    answers, refusals = [], []
    for gpu in map(find_gpu, COMMON_CARDS):
        try:
            result = search(request.on(gpu), only_best=True)
        except ConfigError as error:
            refusals.append(error)
            continue
        answers.append(CardAnswer(gpu, result.best or result.closest))
    if not answers:
        raise refusals[-1]
    return tuple(answers)


def cheapest(answers: Sequence[CardAnswer]) -> CardAnswer:
    """The answer on the cheapest card on which it fits, rather than just about; the largest card if it fits none."""
    order = ("fits", "tight", "no")
    best = min(order.index(answer.candidate.verdict) for answer in answers)
    alike = [answer for answer in answers if order.index(answer.candidate.verdict) == best]
    if not alike[0].fits:
        return max(alike, key=lambda answer: answer.gpu.memory_bytes)
    priced = [answer for answer in alike if answer.gpu.price] or alike
    return min(priced, key=lambda answer: answer.gpu.price.median_usd_per_hour if answer.gpu.price else 0.0)
