"""The trainers whose files are read and written, each by two functions that undo each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.config.run_config import RunConfig
from planner.peers import axolotl, llama_factory, training_arguments, trl, unsloth
from planner.peers.keys import Keys
from planner.peers.reading import Reading
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.peer_keys import PeerKeys, find_peer


@dataclass(frozen=True, slots=True)
class Peer:
    """One trainer's file format.

    `read` makes knobs of keys, on a card and for a model where they are known; `write` makes keys of knobs, all but
    the data; `refusal` is why some configuration cannot be said. `model_key` names the model. `rivals` are keys that
    the peer refuses beside a configuration.
    """

    name: str
    read: Callable[[Keys, ModelProfile | None, GpuProfile | None], Reading]
    write: Callable[[RunConfig], dict[str, Any]]
    refusal: Callable[[RunConfig], ConfigError | None]
    model_key: str | None
    sections: tuple[str, ...] = ()
    rivals: Callable[[RunConfig], tuple[str, ...]] = lambda config: ()

    @property
    def keys(self) -> PeerKeys:
        """The facts about its keys."""
        return find_peer(self.name)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("axolotl", axolotl.read, axolotl.write, axolotl.refusal, "base_model"),
        Peer(
            "llama-factory",
            llama_factory.read,
            llama_factory.write,
            llama_factory.refusal,
            "model_name_or_path",
            rivals=llama_factory.rivals,
        ),
        Peer("trl", trl.read, trl.write, trl.refusal, "model_name_or_path"),
        Peer("unsloth", unsloth.read, unsloth.write, unsloth.refusal, "model", unsloth.SECTIONS),
        Peer(
            "transformers",
            training_arguments.read,
            training_arguments.write,
            training_arguments.refusal,
            None,
        ),
    )
}
"""All of them by name; the last is training arguments alone, which are only read."""


def writable_peers() -> tuple[str, ...]:
    """The peers that a run file can be exported to."""
    return tuple(name for name, peer in PEERS.items() if peer.model_key is not None)
