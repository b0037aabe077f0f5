"""What is found in a data file: the trainer's process reads the file and prints this, the planner reads it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from planner.config.run_config import DataFormat

Unit = Literal["tokens", "characters"]

Oddity = Literal[
    "duplicate",
    "empty answer",
    "roles do not alternate",
    "no answer at the end",
    "nothing is learned",
    "stop token not learned",
]
"""What does not stop a run but rarely is meant."""


class Facts(BaseModel):
    """A frozen group of facts."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(Facts):
    """Something about one row: `place` is its line or number, `what` a sentence."""

    place: str
    what: str


class Piece(Facts):
    """A token: its number, its text, and whether it counts in the loss.

    Where several tokens make one character, the last of them has its text.
    """

    id: int
    text: str
    learned: bool


class PreviewRow(Facts):
    """A row as the model reads it. A preference pair has two `sequences`, the chosen answer first."""

    place: str
    sequences: tuple[tuple[Piece, ...], ...]


class DataReport(Facts):
    """All that is known about a data file.

    `num_rows` counts what stands in the file, `rejected` is what cannot be trained on, in the order of the file.
    Lengths are in `unit`; without the model's tokenizer that is characters. `length_counts` are pairs (length, rows),
    `answer_start_counts` pairs (position of the first token that counts in the loss, rows), None in characters. A row
    of several sequences is as long as the longest. `stop_tokens` are the tokens on which learned answers end.
    """

    path: str
    format: DataFormat
    model: str | None
    num_rows: int
    rejected: tuple[Finding, ...]
    odd: dict[Oddity, tuple[Finding, ...]]
    unit: Unit
    length_counts: tuple[tuple[int, int], ...]
    answer_start_counts: tuple[tuple[int, int], ...] | None
    learned: str
    stop_tokens: tuple[str, ...]
    remarks: tuple[str, ...]
    preview: tuple[PreviewRow, ...]
