"""The text of a peer's file: its keys as the peer would read them, and the same text with some of them changed."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from profiles.errors import ConfigError

SUFFIXES = (".yaml", ".yml", ".json")


def as_written(value: object) -> str:
    """A value as it stands in a file, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_written, value))}]"
    return {True: "true", False: "false", None: ""}[value] if isinstance(value, bool | None) else str(value)


@dataclass(frozen=True, slots=True)
class Document:
    """A file of `key: value` lines. `values` are what YAML 1.1, which peers read, or JSON makes of `text`."""

    path: Path
    text: str
    values: dict[str, Any]

    @property
    def is_json(self) -> bool:
        """Whether the file is JSON, which has no comments to keep."""
        return self.path.suffix.lower() == ".json"

    def with_values(self, changes: Mapping[str, Any], sections: tuple[str, ...] = ()) -> str:
        """The text with the values of `changes` in it and everything else as it was; None takes a key out.

        A key `section.key` of one of the `sections` stands in that section.
        """
        if self.is_json:
            values = json.loads(self.text)
            _change(values, changes, sections)
            return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        # Only here: reading needs none of it.
        from ruamel.yaml import YAML

        editor = YAML(typ="rt")
        editor.preserve_quotes = True
        editor.width = 4096
        values = editor.load(self.text)
        _change(values, changes, sections)
        _match_style(editor, self.text)
        out = io.StringIO()
        editor.dump(values, out)
        return out.getvalue()

    def replaced(self, text: str) -> "Document":
        """The same file with another text."""
        return parse_document(text, self.path)


def read_document(path: Path) -> Document:
    """The keys of the YAML or JSON file at `path`. Raises ConfigError for what is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no run file {path}", hint="write one with `fitune plan MODEL -o FILE`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file {path} cannot be read: {error}") from error
    return parse_document(text, path)


def parse_document(text: str, path: Path) -> Document:
    """The keys in `text`; `path` says whether it is JSON, and is named in errors. Raises ConfigError."""
    values = _json(text, path) if path.suffix.lower() == ".json" else _yaml(text, path)
    if values is None:
        raise ConfigError(f"the file {path} is empty", hint="write one with `fitune plan MODEL -o FILE`")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no `key: value` lines, but {type(values).__name__} {str(values)[:40]}")
    return Document(path, text, {str(key): value for key, value in values.items()})


def _json(text: str, path: Path) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: {error.msg}") from error


def _yaml(text: str, path: Path) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}, line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _change(values: dict[str, Any], changes: Mapping[str, Any], sections: tuple[str, ...]) -> None:
    for key, value in changes.items():
        section, _, name = key.partition(".")
        place, name = (values.setdefault(section, {}), name) if name and section in sections else (values, key)
        if value is None:
            place.pop(name, None)
        else:
            place[name] = value


def _match_style(editor: Any, text: str) -> None:  # noqa: ANN401  # ruamel's editor has no type of its own
    """Indent lists as the file does: ruamel only knows one way for a whole file."""
    for line, following in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if line.rstrip().endswith(":") and following.lstrip().startswith("- "):
            indent = len(following) - len(following.lstrip()) - (len(line) - len(line.lstrip()))
            editor.indent(mapping=2, sequence=indent + 2, offset=indent)
            return
