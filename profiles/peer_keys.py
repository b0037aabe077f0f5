"""The keys of other trainers' files: which of them matter for memory, and their defaults (`peers/*.toml`)."""

import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from profiles.errors import ConfigError

PEERS_FOLDER = Path(__file__).with_name("peers")

Effect = Literal["more", "less", "either"]
"""Whether what is not modeled takes more memory than the estimate says, less, or one or the other."""


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NoEffect(_Facts):
    """Keys, or patterns of them, without an effect on memory, and why."""

    why: str
    keys: tuple[str, ...]


class Unmodeled(_Facts):
    """Keys, or patterns of them, that change memory in a way that no estimate here knows."""

    what: str
    effect: Effect
    keys: tuple[str, ...]


class PeerKeys(_Facts):
    """The keys that one peer's files may have."""

    format: str = Field(description="What its files are called for people.")
    version: str = Field(description="Release of the peer that was read.")
    trainer: str = Field(description="Its row in trainers.toml.")
    source: str
    extends: str | None = Field(None, description="Peer whose keys it has as well, and whose defaults it keeps.")
    understood: tuple[str, ...] = Field(description="Keys that are read; a dot stands before a key in a section.")
    renamed: dict[str, tuple[str, ...]] = Field({}, description="Keys, and older ones that say the same.")
    defaults: dict[str, Any] = Field(description="What the peer takes for a key that is not there.")
    lora_targets: dict[str, tuple[str, ...]] = Field({}, description="Modules that get an adapter if none are named.")
    no_effect: tuple[NoEffect, ...] = ()
    unmodeled: tuple[Unmodeled, ...] = ()

    @property
    def groups(self) -> tuple[NoEffect | Unmodeled, ...]:
        """All groups of keys that are not read."""
        return (*self.no_effect, *self.unmodeled)

    @property
    def lineage(self) -> Iterator["PeerKeys"]:
        """These keys, then those that they extend."""
        yield self
        if self.extends:
            yield from find_peer(self.extends).lineage

    def default(self, key: str) -> Any:  # noqa: ANN401  # whatever the file may hold
        """What the peer takes for `key` when it is not given; None for nothing."""
        return next((peer.defaults[key] for peer in self.lineage if key in peer.defaults), None)

    def older_names(self, key: str) -> tuple[str, ...]:
        """Other keys that say the same as `key`."""
        return next((peer.renamed[key] for peer in self.lineage if key in peer.renamed), ())

    def reason(self, key: str) -> NoEffect | Unmodeled | Literal["understood"] | None:
        """How `key` is accounted for; None for one that the peer does not have."""
        for peer in self.lineage:
            if key in peer.understood:
                return "understood"
            for group in peer.groups:
                if any(fnmatchcase(key, pattern) for pattern in group.keys):
                    return group
        return None

    def nearest(self, key: str) -> str | None:
        """The key that a misspelt one may stand for."""
        known = [name for peer in self.lineage for name in (*peer.understood, *_plain_keys(peer))]
        return next(iter(get_close_matches(key, known, n=1, cutoff=0.8)), None)

    @property
    def num_keys(self) -> int:
        """How many keys, or patterns of keys, are described."""
        return sum(len(peer.understood) + len(_plain_keys(peer)) for peer in self.lineage)


def find_peer(name: str) -> PeerKeys:
    """The keys of a peer. Raises ConfigError with the known names."""
    if name in peer_names():
        return _read(name)
    raise ConfigError(f"format is {name}, which is not described", hint=f"one of: {', '.join(peer_names())}")


@cache
def peer_names() -> tuple[str, ...]:
    """The peers whose files are described, sorted."""
    return tuple(sorted(path.stem for path in PEERS_FOLDER.glob("*.toml")))


def is_off(value: object, default: object) -> bool:
    """Whether a key with this value does nothing: it is empty, or what the peer takes anyway."""
    return value is None or value == default or value in (False, 0, "", "false", "none") or _is_empty(value)


def _is_empty(value: object) -> bool:
    return isinstance(value, list | dict) and not value


def _plain_keys(peer: PeerKeys) -> tuple[str, ...]:
    return tuple(key for group in peer.groups for key in group.keys)


@cache
def _read(name: str) -> PeerKeys:
    text = (PEERS_FOLDER / f"{name}.toml").read_text("utf-8")
    return PeerKeys.model_validate(tomllib.loads(text))


def flattened(values: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """`values` with the keys of each of its `sections` beside the others, under `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in sections and isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat
