"""How much torch's allocator holds beside what a pass has allocated, from simulated steps (`slack.toml`)."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

SLACK_FILE = Path(__file__).with_name("slack.toml")


class SimulatedSlack(BaseModel):
    """Shares of bytes that are cached at a peak. The errors are those of reserved memory on the simulated steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    transients: float = Field(ge=0, description="of what one layer's forward pass makes, while the loss peaks")
    cut_at_loss: float = Field(ge=0, description="of what the loss has at work, while it peaks, with checkpoints")
    cut: float = Field(ge=0, description="of what the loss has at work, while a layer peaks, with checkpoints")
    median_error: float = Field(ge=0, description="half of the simulated steps are nearer")
    p95_error: float = Field(ge=0, description="95 % of the simulated steps are nearer")
    left_out_error: float = Field(ge=0, description="half of the steps of models that were left out are nearer")
    steps: int = Field(gt=0, description="simulated steps")
    versions: str
    source: str


@cache
def simulated_slack() -> SimulatedSlack:
    """The shares of `slack.toml`, read once."""
    return SimulatedSlack.model_validate(tomllib.loads(SLACK_FILE.read_text("utf-8")))
