"""How an answer is to be shown."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Show:
    """Whether with all its arithmetic, drawn into a file as well, or as JSON."""

    explain: bool
    plot: Path | None
    json: bool
