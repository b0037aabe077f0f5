"""Whose file it is, told by its keys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from planner.config.run_config import DataKnobs, Knobs, LoraKnobs, RunConfig
from planner.peers.peer import PEERS
from profiles.errors import ConfigError
from profiles.peer_keys import flattened

RUN_FILE: Literal["fitune"] = "fitune"

FORMATS = (RUN_FILE, *PEERS)
"""What a file can be taken for."""

OWN_SECTIONS: dict[str, type[Knobs]] = {"data": DataKnobs, "lora": LoraKnobs}
"""Sections of run files of which others have their own, under the same names."""

SMALLEST_SHARE = 0.5
"""Of its keys that a format has to know to be the one that is meant."""


def recognize(values: Mapping[str, Any], formats: Sequence[str] = FORMATS) -> str | None:
    """The format that knows most of the top-level keys; of several, our own, or the one with the fewest keys.

    None if the best of them knows less than half.
    """
    scores = {name: _num_known(name, values) for name in formats}
    best = max(formats, key=lambda name: (scores[name], name == RUN_FILE, -_size(name)))
    return best if scores[best] >= SMALLEST_SHARE * len(values) and scores[best] else None


def find_format(declared: str | None, values: Mapping[str, Any], path: Path) -> str:
    """The format that was declared, or that is recognized. Raises ConfigError with the known ones."""
    if declared is not None:
        if declared not in FORMATS:
            raise ConfigError(f"--format is {declared}, which is not described", hint=f"one of: {', '.join(FORMATS)}")
        return declared
    # A run file is YAML.
    is_json = path.suffix.lower() == ".json"
    found = recognize(values, tuple(PEERS) if is_json else FORMATS)
    if found is None:
        shown = ", ".join(list(values)[:4])
        raise ConfigError(
            f"{path} is in no known format: {shown} are keys of none",
            hint=f"--format says which it is: {', '.join(FORMATS)}; `fitune plan -o FILE` writes a run file",
        )
    return found


def _num_known(name: str, values: Mapping[str, Any]) -> int:
    """How many top-level keys are known; a section is if any of its own keys is."""
    if name == RUN_FILE:
        return sum(key in RunConfig.model_fields and _has_knobs(key, value) for key, value in values.items())
    peer = PEERS[name]
    return sum(
        any(peer.keys.reason(inner) is not None for inner in flattened({key: value}, peer.sections))
        for key, value in values.items()
    )


def _has_knobs(key: str, value: object) -> bool:
    section: type[Knobs] | None = OWN_SECTIONS.get(key)
    return section is None or not isinstance(value, Mapping) or any(knob in section.model_fields for knob in value)


def _size(name: str) -> int:
    return PEERS[name].keys.num_keys if name in PEERS else 0
