"""The few constants that no theory gives: fitted on measured runs by `python -m calibration.fit` (`fitted.toml`)."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

FITTED_FILE = Path(__file__).with_name("fitted.toml")
ANY = "any"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Constant(_Facts):
    """A fitted value and how well the runs fix it."""

    value: float = Field(gt=0)
    spread: float = Field(ge=0, description="standard deviation of the value, as a share of it")


class Efficiencies(_Facts):
    """What share of its rates a step reaches on a card in a dtype (`any`: on those that are not listed)."""

    gpu: str
    dtype: str
    product: Constant = Field(description="of the measured rate of large matrix products")
    attention: Constant = Field(description="of the same, in fused attention")
    bandwidth: Constant = Field(description="of the bandwidth, in operators between products")
    dequantization: Constant = Field(description="of the bandwidth, while 4-bit weights are unpacked")
    launch_seconds: Constant = Field(description="for which the CPU is busy with one kernel")
    error: float = Field(ge=0, description="root mean square error of tokens/s, as a share")
    error_left_out: float = Field(ge=0, description="the same of runs that were left out of the fit, group by group")
    runs: int = Field(gt=0)
    records: tuple[str, ...] = Field(description="where the runs stand")


AttentionKind = Literal["fused", "eager"]
"""Whether attention is one kernel, or materializes the scores."""

SlackKind = Literal["step"]
"""Where the peak is: in the optimizer step. What is cached beside the passes is simulated (`slack.py`)."""


class Slack(_Facts):
    """Reserved less allocated memory at the peak, as a share of the bytes of activations, which lie idle beside it."""

    kind: SlackKind
    value: float = Field(ge=0)
    spread: float = Field(ge=0, description="standard deviation of a run, in the same shares")
    error: float = Field(ge=0, description="median error of the reserved memory, as a share of it")
    error_left_out: float | None = Field(
        default=None, ge=0, description="the same, each one who measured left out of the fit; None if only one did"
    )
    runs: int = Field(gt=0)
    records: tuple[str, ...] = Field(description="where the runs stand")


class MeasuredContext(_Facts):
    """The process less what torch reserved, the most that was measured on a card."""

    gpu: str
    mib: int = Field(gt=0)
    least_mib: int = Field(gt=0)
    above_left_out_mib: int | None = Field(
        default=None, ge=0, description="how far a model lay above the most of the others; None if only one ran"
    )
    runs: int = Field(gt=0)
    records: tuple[str, ...]


class Fitted(_Facts):
    """All tables of fitted.toml."""

    speed: tuple[Efficiencies, ...]
    slack: tuple[Slack, ...]
    context: tuple[MeasuredContext, ...] = ()

    def efficiencies(self, gpu: str, dtype: str) -> Efficiencies:
        """Those of the card and dtype, or of all where too little was measured there."""
        for wanted in ((gpu, dtype), (ANY, ANY)):
            for one in self.speed:
                if (one.gpu, one.dtype) == wanted:
                    return one
        raise LookupError("fitted.toml has no efficiencies for any card")

    def slack_share(self, kind: SlackKind) -> float:
        """The share of a kind."""
        return next(one.value for one in self.slack if one.kind == kind)

    def context_mib(self, gpu: str) -> int | None:
        """The most that a context took on the card; None if it was not measured."""
        return next((one.mib for one in self.context if one.gpu == gpu), None)


@cache
def fitted() -> Fitted:
    """The facts of `fitted.toml`, read once."""
    return Fitted.model_validate(tomllib.loads(FITTED_FILE.read_text("utf-8")))
