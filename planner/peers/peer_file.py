"""A peer's file as a run: the configuration it comes to, whose step it is, and an account of each key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from planner.config.run_config import RunConfig
from planner.peers.document import Document
from planner.peers.keys import KeyAccount, Keys
from planner.peers.peer import Peer
from planner.peers.several_cards import with_layout
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile
from profiles.peer_keys import flattened
from profiles.trainer import TrainerProfile, find_trainer


@dataclass(frozen=True, slots=True)
class PeerFile:
    """A file that was read: what its keys come to, and which of them are not in the estimate.

    `unsaid` are knobs from elsewhere that its format has no keys for; they are in `config`.
    """

    document: Document
    peer: Peer
    config: RunConfig
    traits: TrainerProfile
    accounts: tuple[KeyAccount, ...]
    remarks: tuple[str, ...]
    unsaid: Mapping[str, Any]

    @property
    def values(self) -> dict[str, Any]:
        """The keys of the file and what they hold, those in sections with a dot."""
        return flattened(self.document.values, self.peer.sections)

    @property
    def not_counted(self) -> tuple[KeyAccount, ...]:
        """Keys that may matter and that the estimate knows nothing of."""
        return tuple(account for account in self.accounts if account.status in ("not modeled", "unknown"))


def model_named_in(document: Document, peer: Peer) -> str | None:
    """The model that the file trains; None if it names none."""
    if peer.model_key is None:
        return None
    value = document.values.get(peer.model_key)
    return str(value) if value is not None else None


def read_peer_file(
    document: Document,
    peer: Peer,
    model_name: str,
    model: ModelProfile | None,
    gpu: GpuProfile | None,
    unsaid: Mapping[str, Any] | None = None,
) -> PeerFile:
    """What the file comes to for the model called `model_name` on a card.

    Raises ConfigError for values that are not described, and for keys that together come to no run.
    """
    values = flattened(document.values, peer.sections)
    keys = Keys(values, peer.keys, document.path)
    reading = peer.read(keys, model, gpu)
    config = _config(reading.knobs | {"model": model_name, "gpu": gpu.name if gpu else None}, document, peer)
    traits = find_trainer(peer.keys.trainer).model_copy(update=reading.traits)
    config = with_layout(config, keys, unsaid or {}, document.path.parent)
    return PeerFile(document, peer, config, traits, keys.accounts(), tuple(keys.remarks), unsaid or {})


def _config(knobs: Mapping[str, Any], document: Document, peer: Peer) -> RunConfig:
    present = {name: value for name, value in knobs.items() if value is not None}
    if knobs.get("double_quant") is False and knobs.get("quantization") not in ("nf4", "fp4"):
        # It says nothing where there are no 4 bits.
        present.pop("double_quant")
    try:
        return RunConfig.model_validate(present)
    except ValidationError as error:
        details = error.errors()[0]
        knob = ".".join(str(part) for part in details["loc"])
        rule = details["msg"].removeprefix("Value error, ")
        about = f"{knob} is {details['input']!r}: " if knob else ""
        raise ConfigError(
            f"{document.path}, read as a file of {peer.keys.format}, comes to a run that cannot be: {about}{rule}",
            hint="the names in this sentence are those of `fitune plan`'s run files",
        ) from error
