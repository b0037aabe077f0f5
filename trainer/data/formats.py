"""What a row means: text, an answer to a prompt, a conversation, a preferred or a judged answer. Needs no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from planner.config.run_config import DATA_COLUMNS, DataFormat
from profiles.errors import DataError
from trainer.data.files import is_unicode

Message = dict[str, str]
"""A turn of a conversation: its `role` and its `content`."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""Names of roles in the wild, and the names that chat templates know."""


JUDGEMENTS = {"true": True, "1": True, "false": False, "0": False}
"""Labels of good and bad answers, as text; a CSV file has no truth values."""


class BadRow(ValueError):  # noqa: N818
    """What is wrong with one row, without the place."""


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write examples: the columns it is known by, and what turns a row into columns that TRL takes."""

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, Any]], dict[str, Any]]


def find_format(declared: DataFormat, columns: Mapping[str, Any]) -> Format:
    """The format that is declared, or for `auto` the one whose columns are all there.

    Raises DataError that lists the formats and their columns.
    """
    known = "; ".join(f"{name}: {', '.join(one.columns)}" for name, one in FORMATS.items())
    if declared != "auto":
        missing = [column for column in FORMATS[declared].columns if column not in columns]
        if missing:
            raise DataError(
                f"data.format is {declared}, but there is no column {missing[0]}; the columns are {', '.join(columns)}",
                hint=f"columns by format: {known}",
            )
        return FORMATS[declared]
    for one in FORMATS.values():
        if all(column in columns for column in one.columns):
            return one
    raise DataError(
        f"the columns {', '.join(columns) or 'of the first row'} belong to no known format",
        hint=f"columns by format: {known}",
    )


def _text(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": _filled(row, "text")}


def _prompt_completion(row: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(row.get("prompt"), list):
        return _conversation(_messages(row, "prompt") + _messages(row, "completion"))
    return {"prompt": _filled(row, "prompt"), "completion": _filled(row, "completion")}


def _chat(row: Mapping[str, Any]) -> dict[str, Any]:
    return _conversation(_messages(row, "messages"))


def _sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    return _conversation(_messages(row, "conversations"))


def _alpaca(row: Mapping[str, Any]) -> dict[str, Any]:
    question = _filled(row, "instruction")
    if row.get("input"):
        question += "\n\n" + _filled(row, "input")
    system = [{"role": "system", "content": _filled(row, "system")}] if row.get("system") else []
    answer = {"role": "assistant", "content": _filled(row, "output")}
    return _conversation([*system, {"role": "user", "content": question}, answer])


def _preference(row: Mapping[str, Any]) -> dict[str, Any]:
    """Two answers to one prompt; those of a conversation may repeat it, as whole conversations."""
    if not isinstance(row.get("chosen"), list):
        columns = {name: _filled(row, name) for name in ("prompt", "chosen", "rejected")}
        if columns["chosen"] == columns["rejected"]:
            raise BadRow("chosen and rejected are the same, so there is nothing to prefer")
        return columns
    before = _messages(row, "prompt") if isinstance(row.get("prompt"), list) else []
    chosen, rejected = before + _messages(row, "chosen"), before + _messages(row, "rejected")
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if shared in (len(chosen), len(rejected)):
        raise BadRow("chosen and rejected are the same up to the end of one, so there is nothing to prefer")
    if shared == 0:
        raise BadRow("chosen and rejected differ from their first turn on, so they answer no common prompt")
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def _kto(row: Mapping[str, Any]) -> dict[str, Any]:
    label = JUDGEMENTS.get(str(row.get("label")).lower())
    if label is None:
        raise BadRow(f"label is {_shown(row.get('label'))}, but must be true for a good answer or false for a bad one")
    if isinstance(row.get("prompt"), list):
        return {"prompt": _messages(row, "prompt"), "completion": _messages(row, "completion"), "label": label}
    return {"prompt": _filled(row, "prompt"), "completion": _filled(row, "completion"), "label": label}


CONVERSIONS: dict[DataFormat, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "messages": _chat,
    "sharegpt": _sharegpt,
    "preference": _preference,
    "kto": _kto,
    "prompt-completion": _prompt_completion,
    "alpaca": _alpaca,
    "text": _text,
}

FORMATS = {name: Format(columns, CONVERSIONS[name]) for name, columns in DATA_COLUMNS.items()}
"""The known formats; where the columns of several are there, the first one is meant."""


def conversations(example: Mapping[str, Any]) -> list[list[Message]]:
    """The conversations of a converted row, each from its first turn to its answer; none if the row is text."""
    if "messages" in example:
        return [example["messages"]]
    answers = [example[name] for name in ("completion", "chosen", "rejected") if name in example]
    return [example["prompt"] + answer for answer in answers if isinstance(answer, list)]


def renamed_roles(row: Mapping[str, Any]) -> dict[str, str]:
    """The roles in a row that are spelled in another way than chat templates do, and how they are read."""
    turns = (turn for value in row.values() if isinstance(value, list) for turn in value if isinstance(turn, Mapping))
    roles = {str(turn.get("role") or turn.get("from")) for turn in turns}
    return {role: ROLES[role.lower()] for role in sorted(roles) if ROLES.get(role.lower(), role) != role}


def _conversation(messages: list[Message]) -> dict[str, Any]:
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRow("no turn of the conversation is the assistant's, so there is nothing to learn from")
    return {"messages": messages}


def _messages(row: Mapping[str, Any], column: str) -> list[Message]:
    if column not in row:
        raise BadRow(f"there are no {column}; the row has {', '.join(row) or 'nothing'}")
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise BadRow(f"{column} must be a list of at least one turn, but is {_shown(turns)}")
    return [_message(turn, f"{column}[{number}]") for number, turn in enumerate(turns)]


def _message(turn: object, where: str) -> Message:
    """A turn in either spelling, `role` and `content` or `from` and `value`."""
    if not isinstance(turn, dict):
        raise BadRow(f"{where} must be an object with role and content, but is {_shown(turn)}")
    role_key, content_key = ("from", "value") if turn.get("role") is None and "from" in turn else ("role", "content")
    role, content = turn.get(role_key), turn.get(content_key)
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise BadRow(f"{where}.{role_key} is {_shown(role)}, but must be one of {', '.join(ROLES)}")
    if not isinstance(content, str) or not is_unicode(content):
        raise BadRow(f"{where}.{content_key} must be text, but is {_shown(content)}")
    return {"role": ROLES[role.lower()], "content": content}


def _filled(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if column not in row:
        raise BadRow(f"there is no column {column}")
    if not isinstance(value, str) or not is_unicode(value):
        raise BadRow(f"{column} must be text, but is {_shown(value)}")
    if not value.strip():
        raise BadRow(f"{column} is empty")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
