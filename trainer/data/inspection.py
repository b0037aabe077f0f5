"""What is found in a data file, row by row. Needs torch only with a tokenizer."""

import json
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from planner.config.run_config import DataFormat
from planner.data.report import DataReport, Finding, Oddity, PreviewRow
from profiles.errors import DataError
from trainer.data.files import Row, Unreadable
from trainer.data.formats import FORMATS, BadRow, Format, Message, find_format, renamed_roles
from trainer.data.oddities import oddities

if TYPE_CHECKING:
    from trainer.data.token_counts import TokenCounts

DIGEST_BYTES = 16

LEARNED: dict[DataFormat, str] = {
    "text": "every token",
    "prompt-completion": "the completion",
    "preference": "the chosen answer, against the rejected one",
    "kto": "the answer, as wanted or unwanted",
}
"""What counts in the loss; of a conversation, that depends on the chat template."""


class Inspection:
    """Collects what is found. A row is forgotten when it was looked at: counts stay, and a digest to know it again."""

    def __init__(self, declared: DataFormat, tokens: "TokenCounts | None") -> None:
        self._declared = declared
        self._tokens = tokens
        self._format: Format | None = None
        self._unknown: DataError | None = None
        self._num_rows = 0
        self._rejected: list[Finding] = []
        self._odd: dict[Oddity, list[Finding]] = {kind: [] for kind in get_args(Oddity)}
        self._characters: Counter[int] = Counter()
        self._places: dict[bytes, str] = {}
        self._roles: dict[str, str] = {}
        self._labels: Counter[bool] = Counter()
        self._preview: list[PreviewRow] = []

    def add(self, row: Row | Unreadable, preview: int) -> None:
        """Take note of `row`, in full if fewer than `preview` are so far."""
        self._num_rows += 1
        try:
            if isinstance(row, Unreadable):
                raise BadRow(row.what)
            self._look_at(row, show=len(self._preview) < preview)
        except BadRow as error:
            self._rejected.append(Finding(place=row.place, what=str(error)))

    def report(self, path: Path, model: str | None) -> DataReport:
        """All that was found. Raises DataError if no row has the columns of a known format."""
        if self._format is None:
            first = self._rejected[0]
            raise self._unknown or DataError(f"{path}, {first.place}: {first.what}", hint="no row could be read")
        name = next(name for name, known in FORMATS.items() if known is self._format)
        tokens = self._tokens
        return DataReport(
            path=str(path),
            format=name,
            model=model,
            num_rows=self._num_rows,
            rejected=tuple(self._rejected),
            odd={kind: tuple(found) for kind, found in self._odd.items() if found},
            unit="tokens" if tokens else "characters",
            length_counts=tuple(sorted((tokens.lengths if tokens else self._characters).items())),
            answer_start_counts=tuple(sorted(tokens.answer_starts.items())) if tokens else None,
            learned=LEARNED.get(name) or self._learned_of_turns(),
            stop_tokens=tokens.stop_tokens if tokens else (),
            remarks=(*self._role_remarks(), *self._label_remarks(), *(tokens.remarks if tokens else ())),
            preview=tuple(self._preview),
        )

    def _look_at(self, row: Row, show: bool) -> None:
        example = self._convert(row.values)
        found = oddities(example)
        if self._tokens is None:
            self._characters[_num_characters(example)] += 1
        else:
            sequences, odd = self._tokens.add(example)
            found |= odd
            if show:
                pieces = tuple(self._tokens.pieces(encoded) for encoded in sequences)
                self._preview.append(PreviewRow(place=row.place, sequences=pieces))
        self._roles |= renamed_roles(row.values)
        if "label" in example:
            self._labels[example["label"]] += 1
        if same := self._same_as(example, row.place):
            found["duplicate"] = f"the same as {same}"
        for kind, what in found.items():
            self._odd[kind].append(Finding(place=row.place, what=what))

    def _convert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The example that a row is; the first row whose columns are known decides on the format."""
        if self._format is None:
            try:
                self._format = find_format(self._declared, values)
            except DataError as error:
                self._unknown = self._unknown or error
                raise BadRow(error.message) from error
        return self._format.convert(values)

    def _same_as(self, example: Mapping[str, Any], place: str) -> str | None:
        """Where the same example stood before; None if it is new."""
        text = json.dumps(example, sort_keys=True).encode()
        first = self._places.setdefault(blake2b(text, digest_size=DIGEST_BYTES).digest(), place)
        return first if first != place else None

    def _learned_of_turns(self) -> str:
        if self._tokens is None:
            return "answers; which of them depends on the model's chat template"
        return "every answer" if self._tokens.learns_every_answer else "the last answer"

    def _role_remarks(self) -> tuple[str, ...]:
        if not self._roles:
            return ()
        return ("roles are read as " + ", ".join(f"{theirs}: {ours}" for theirs, ours in self._roles.items()),)

    def _label_remarks(self) -> tuple[str, ...]:
        if len(self._labels) != 1:
            return ()
        ((good, count),) = self._labels.items()
        one, other = ("good", "bad") if good else ("bad", "good")
        return (f"all {count:,} answers are labelled {one}; kto learns little without {other} ones",)


def _num_characters(example: Mapping[str, Any]) -> int:
    """Characters of a row, a line break after each turn; of two answers the longer counts."""
    if "messages" in example:
        return _length(example["messages"])
    prompt = _length(example.get("prompt", ""))
    return prompt + max(
        _length(example[name]) for name in ("text", "completion", "chosen", "rejected") if name in example
    )


def _length(text: str | list[Message]) -> int:
    return len(text) if isinstance(text, str) else sum(len(message["content"]) + 1 for message in text)
