"""`--set KNOB=VALUE`: any knob of a run, in the names and with the checks of the run file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.run_config import RunConfig
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
        values = _merged(values, value)
    return values


def with_knobs(config: RunConfig, knobs: Mapping[str, Any]) -> RunConfig:
    """`config` with `knobs` in place of its own values.

    Raises ConfigError for an unknown name or a value out of range.
    """
    if not knobs:
        return config
    # Only here: PyYAML would be a tenth of the time of an answer that sets nothing.
    import yaml

    from planner.run_file import parse_run_file

    values = _merged(config.model_dump(mode="json"), knobs)
    return parse_run_file(yaml.safe_dump(values), Path("--set"))


def _value(text: str) -> Any:  # noqa: ANN401  # whatever JSON holds
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text.split(",") if "," in text else text


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
