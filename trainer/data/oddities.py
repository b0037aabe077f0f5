"""What of a row does not stop a run but rarely is meant. Needs no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from planner.data.report import Oddity
from trainer.data.formats import Message, conversations

MAY_FOLLOW: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""The roles that may come after a role; None is the beginning."""


def oddities(example: Mapping[str, Any]) -> dict[Oddity, str]:
    """What is odd about the turns of a converted row, each kind with a sentence about the first place of it."""
    found: dict[Oddity, str] = {}
    for conversation in conversations(example):
        for kind, sentence in _odd_turns(conversation):
            found.setdefault(kind, sentence)
    return found


def _odd_turns(conversation: list[Message]) -> Iterator[tuple[Oddity, str]]:
    before: str | None = None
    for number, message in enumerate(conversation, start=1):
        role = message["role"]
        if role not in MAY_FOLLOW[before]:
            after = f"after one of the {before}" if before else "at the beginning"
            yield "roles do not alternate", f"turn {number} is the {role}'s, {after}"
        if role == "assistant" and not message["content"].strip():
            yield "empty answer", f"turn {number}, the assistant's, is empty"
        before = role
    if before != "assistant":
        yield "no answer at the end", f"the last turn is the {before}'s; nothing of it is learned"
