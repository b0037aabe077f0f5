"""`--set KNOB=VALUE`: any knob of a run, in the names and with the checks of the run file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from planner.config.run_config import RunConfig
from profiles.errors import ConfigError


def knobs_in(settings: Sequence[str]) -> dict[str, Any]:
    """The values in `settings`, nested as in the run file: `lora.r=8` is {"lora": {"r": 8}}.

    Raises ConfigError for a setting that is not KNOB=VALUE. Names and values are checked by `with_knobs`.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set is given {setting!r}, but it takes KNOB=VALUE", hint="try --set optim=adamw_8bit")
        value = _value(text.strip())
        for part in reversed(name.strip().split(".")):
            value = {part: value}
        values = merged(values, value)
    return values


def check_knobs(knobs: Mapping[str, Any]) -> None:
    """Raise ConfigError for a name that is no knob, and for a value that is wrong whatever the other knobs are."""
    if not knobs:
        return
    try:
        RunConfig.model_validate({"model": "any", **knobs})
    except ValidationError as error:
        # Rules between knobs have no place of their own; whoever fills in the others checks them.
        own = [details for details in error.errors() if details["loc"]]
        if own:
            from planner.config.run_file import config_error

            raise config_error(own[0], Path("--set")) from error


def with_knobs(config: RunConfig, knobs: Mapping[str, Any]) -> RunConfig:
    """`config` with `knobs` in place of its own values.

    Raises ConfigError as `check_knobs` does, and for knobs that contradict each other.
    """
    try:
        return RunConfig.model_validate(merged(config.model_dump(mode="json"), knobs)) if knobs else config
    except ValidationError as error:
        # Only here: PyYAML, which comes along, would be a tenth of the time of an answer that sets nothing.
        from planner.config.run_file import config_error

        raise config_error(error.errors()[0], Path("--set")) from error


def _value(text: str) -> Any:  # noqa: ANN401  # whatever JSON holds
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        listed = text.startswith("[") and text.endswith("]")
        words = text[1:-1] if listed else text
        return [word.strip() for word in words.split(",")] if listed or "," in text else text


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` in place of their own, section by section."""
    result = dict(values)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def settings_of(knobs: Mapping[str, Any]) -> list[str]:
    """`knobs` as KNOB=VALUE, so that `knobs_in` gives them back."""
    settings = []
    for name, value in knobs.items():
        if isinstance(value, Mapping):
            settings += [f"{name}.{setting}" for setting in settings_of(value)]
        else:
            settings.append(f"{name}={_text(value)}")
    return settings


def _text(value: object) -> str:
    """What `_value` reads as `value`, in as few signs as there can be."""
    if isinstance(value, str) and _value(value) == value:
        return value
    return "none" if value is None else json.dumps(value)
