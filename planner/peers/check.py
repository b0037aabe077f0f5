"""The pre-flight check of a peer's file: does it fit the card, what of it is not known, and what would make it fit."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planner.asking.question import card_or_cpu, pinned_knobs
from planner.asking.wishes import Wishes
from planner.config.run_config import LoraKnobs, RunConfig
from planner.config.settings import with_knobs
from planner.memory.verdict import Verdict
from planner.peers.document import Document, read_document
from planner.peers.fix import Fix, hardware_objections, smallest_fix
from planner.peers.peer import PEERS, Peer
from planner.peers.peer_file import PeerFile, model_named_in, read_peer_file
from planner.peers.recognition import RUN_FILE, find_format
from planner.predict.prediction import Prediction, Target, Tracing, predict_either_way
from profiles.errors import ConfigError, UnknownModelError, UnsupportedError
from profiles.model import ModelProfile
from profiles.model_catalog import resolve_model

LAYOUT = ("num_gpus", "num_nodes", "parallel")
"""Knobs that peers' files are silent about: the layout is that of the command that starts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAnswer(Prediction):
    """The prediction for a file of another trainer, and what was found in it.

    `file` has an account of each key.
    `objections` are why the card cannot run it, whatever the memory; with one of them the verdict is `no`. With keys
    that are not counted and may take more it is at best `tight`. `fix` is the smallest change that fits; None if the
    file fits already, as far as its keys are counted, or if none is known.
    """

    file: PeerFile
    objections: tuple[str, ...]
    fix: Fix | None

    @property
    def caveat(self) -> str | None:
        """Which keys that are not counted stand against a plain yes or no."""
        if self.objections or self.verdict == "fits":
            return None
        fits = self.estimate.interval_bytes[1] <= self.usable_bytes
        keys = ", ".join(self.may_take("more" if fits else "less"))
        if not keys:
            return None
        if fits:
            return f"no plain yes: {keys} may take more, and how much is not in the estimate"
        return f"no plain no: {keys} may take less, and how much is not in the estimate"

    def may_take(self, effect: Literal["more", "less"]) -> list[str]:
        """Keys of the file that take more, or less, than is counted."""
        return [account.key for account in self.file.not_counted if account.effect in (effect, "either")]


def peer_of(path: Path, declared: str | None = None) -> tuple[Document, Peer] | None:
    """The file and its peer; None for a run file of our own. Raises ConfigError for no known format."""
    document = read_document(path)
    name = find_format(declared, document.values, path)
    return None if name == RUN_FILE else (document, PEERS[name])


def check_file(
    document: Document,
    peer: Peer,
    gpu: str | None = None,
    model: str | None = None,
    wishes: Wishes | None = None,
    *,
    exact: bool = False,
    tracing: Tracing = lambda why: nullcontext(),
) -> PeerAnswer:
    """The answer for a file on a card, with a `model` and with wishes in place of what it says.

    With `exact`, and for what the closed form does not describe, the step is traced; then no change is looked for.
    Raises InputError for a model or a card that is not known, and for a file that comes to no run.
    """
    card = card_or_cpu(gpu)
    name, profile = _model(document, peer, model)
    # Every trainer takes all cards that there are; none has a key for their number.
    all_cards = {"num_gpus": card.cluster.num_gpus} if card.cluster.num_gpus > 1 else {}
    knobs = all_cards | dict(_knobs(peer, wishes or Wishes()))
    unsaid = knobs if peer.model_key is None else {name: knobs[name] for name in LAYOUT if name in knobs}
    file = read_peer_file(document, peer, name, profile, card.gpu, unsaid)
    config = with_knobs(file.config, knobs)
    target = Target(profile, card.gpu, card.free_bytes, file.traits, cluster=card.cluster)
    _check_described(file, config)
    prediction = predict_either_way(config, target, exact=exact, tracing=tracing)
    objections = hardware_objections(config, target)
    fits = prediction.verdict == "fits" and not objections
    fix = smallest_fix(file, config, target) if prediction.by == "closed form" and not fits else None
    return PeerAnswer(
        config=config,
        target=target,
        estimate=prediction.estimate,
        usable_bytes=prediction.usable_bytes,
        verdict=_verdict(file, prediction, objections),
        speed=prediction.speed,
        lesson=prediction.lesson,
        by=prediction.by,
        file=file,
        objections=objections,
        fix=fix,
    )


def _verdict(file: PeerFile, prediction: Prediction, objections: tuple[str, ...]) -> Verdict:
    """That of the memory; `no` with an objection, and no better than `tight` with keys that may take more."""
    if objections:
        return "no"
    more = any(account.effect in ("more", "either") for account in file.not_counted)
    return "tight" if more and prediction.verdict == "fits" else prediction.verdict


def _check_described(file: PeerFile, config: RunConfig) -> None:
    """Refuse objectives whose step is not described for this trainer."""
    objective = config.objective
    if objective != "sft" and not file.traits.preferences:
        raise UnsupportedError(
            f"{file.document.path} trains {objective}, but what a step of {file.peer.keys.format} takes is only "
            "described for sft",
            hint=f"`fitune estimate {file.config.model} --objective {objective}` answers for TRL's trainer",
        )


def _model(document: Document, peer: Peer, model: str | None) -> tuple[str, ModelProfile]:
    """The name and the shape of the model that is trained."""
    name = model or model_named_in(document, peer)
    if name is None:
        raise ConfigError(f"{document.path} names no model", hint="--model says which: a Hub id, a folder, 7b")
    try:
        return name, resolve_model(name).profile
    except UnknownModelError as error:
        raise UnknownModelError(
            error.message,
            hint="--model takes another name of the same shape: a folder with its config.json, or one of "
            "`fitune models`",
        ) from error


def _knobs(peer: Peer, wishes: Wishes) -> Mapping[str, Any]:
    """What is wished in place of what the file says; the method only where it cannot say it."""
    knobs = pinned_knobs(wishes)
    if wishes.method == "auto":
        return knobs
    if peer.model_key is not None:
        raise ConfigError("--method is for a MODEL; the file has its own", hint="use --set for what goes with it")
    return METHODS[wishes.method] | knobs if wishes.method in METHODS else knobs | {"method": wishes.method}


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "dtype": "bfloat16", "lora": LoraKnobs().model_dump()},
    "qlora": {"method": "qlora", "dtype": "bfloat16", "quantization": "nf4", "lora": LoraKnobs().model_dump()},
}
"""What a method adds to training arguments, which know of none."""
