"""How far measured runs lay from what was predicted for them, and on which cards they ran (`residuals.toml`)."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles.fitted import AttentionKind
from profiles.gpu import GpuProfile

RESIDUALS_FILE = Path(__file__).with_name("residuals.toml")

ANY = "any"

Nearness = Literal["card", "generation", "none"]
"""What was measured: this card, another one of its generation, or neither."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Facts):
    """What the next run stays below: measured less predicted reserved memory, in shares of its activations."""

    method: str = Field(description="full, lora, qlora, peft; any: all of them together")
    attention: AttentionKind
    high: float
    runs: int = Field(gt=1, description="measured runs that this is from")
    groups: tuple[str, ...] = Field(description="who measured them")


class MeasuredCard(_Facts):
    """A card on which runs of these methods were measured."""

    name: str
    compute_capability: tuple[int, int]
    runs: dict[str, int] = Field(description="by method")


class Residuals(_Facts):
    """All tables of residuals.toml."""

    source: str
    unmeasured: float = Field(ge=0, description="what is added on a card that was not measured")
    spreads: tuple[Spread, ...]
    cards: tuple[MeasuredCard, ...]

    def spread(self, method: str, attention: AttentionKind) -> Spread:
        """That of such runs, or of all methods where too few of them were measured."""
        alike = [one for one in self.spreads if one.attention == attention] or list(self.spreads)
        own = [one for one in alike if one.method == method]
        return next(iter(own), None) or next(one for one in alike if one.method == ANY)

    def evidence(self, gpu: GpuProfile, method: str) -> "Evidence":
        """What was measured of `method` that is near to `gpu`."""
        cards = tuple(card for card in self.cards if method in card.runs)
        names = tuple(card.name for card in cards)
        if gpu.name in names:
            runs = sum(card.runs[method] for card in cards if card.name == gpu.name)
            return Evidence(method, "card", names, runs)
        akin = any(card.compute_capability == gpu.compute_capability for card in cards)
        return Evidence(method, "generation" if akin else "none", names, 0)

    def highest(self, gpu: GpuProfile, method: str, attention: AttentionKind) -> float:
        """How far a run on `gpu` may lie above its prediction, in shares of its activations."""
        more = 0.0 if self.evidence(gpu, method).nearness == "card" else self.unmeasured
        return self.spread(method, attention).high + more


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an answer rests on beside the formulas: the cards on which such runs were measured, and how near they are.

    `runs` counts those on the very card.
    """

    method: str
    nearness: Nearness
    cards: tuple[str, ...]
    runs: int

    @property
    def words(self) -> str:
        """The same in a few words."""
        if self.nearness == "card":
            return f"{self.runs} {self.method} run{'s' * (self.runs > 1)} measured on this card"
        near = ", one of them of its generation" if self.nearness == "generation" else ""
        return f"{self.method} runs measured on {' and '.join(self.cards)}{near}; this card: by calculation"


@cache
def residuals() -> Residuals:
    """The facts of `residuals.toml`, read once."""
    return Residuals.model_validate(tomllib.loads(RESIDUALS_FILE.read_text("utf-8")))
