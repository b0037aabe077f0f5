"""What `fitune doctor` says of one thing that it looked at."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it stands, in a sentence, and the command that cures it."""

    subject: str
    status: Status
    message: str
    cure: str | None = None
