"""The smallest change to a peer's file that fits: in the peer's own keys, and none that it does not need."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from pydantic import ValidationError

from planner.config.run_config import RunConfig
from planner.peers.document import Document
from planner.peers.peer import Peer
from planner.peers.peer_file import PeerFile, read_peer_file
from planner.predict.prediction import Prediction, Target, predict
from planner.search.space import OPTIMIZERS
from planner.step.hardware import objections, quantizations
from profiles.errors import InputError
from profiles.gpu import GpuProfile

Knobs = dict[str, Any]

SHORTEST = 512
"""Rows are not proposed to become shorter than this."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """One key of the file: what it holds (None: it is not there), and what it is to hold (None: take it out)."""

    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Fix:
    """A file that fits: the changes, the text with them, and what is predicted of it."""

    changes: tuple[KeyChange, ...]
    document: Document
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class Way:
    """Knobs that leave the result of training as it is; `frugal` if no others take less."""

    knobs: Knobs
    frugal: bool


@dataclass(frozen=True, slots=True, order=True)
class Harm:
    """How much of a run a change gives away, in this order: the method, the rows, the base, the optimizer."""

    method: int
    length: int
    base: int
    optimizer: int


def smallest_fix(file: PeerFile, config: RunConfig, target: Target) -> Fix | None:
    """The least harmful change that fits; of those, the one with the fewest keys, then the fastest. None if none does.

    It starts from `config`, which is what the file comes to but for what is wished otherwise. What does not change the
    result of training, such as a smaller micro-batch with more accumulation, is no harm at all. Of what does, an
    optimizer with 8-bit states hurts least, then a quantized base, shorter rows, and an adapter in place of training
    all weights.
    """
    harms = sorted(_harms(config, target.gpu), key=lambda one: one[0])
    ways = list(_harmless(config, target.gpu))
    for _, harm in harms:
        if not any(way.frugal and _fits(config, way.knobs | harm, target) for way in ways):
            continue
        found = [fitting for way in ways if (fitting := _fitting(file, config, way.knobs | harm, target)) is not None]
        found.sort(key=lambda one: (len(one[1]), -(one[0].speed.tokens_per_second if one[0].speed else 0)))
        for _, changes in found:
            if fix := _written(file, changes, target):
                return fix
    return None


def hardware_objections(config: RunConfig, target: Target) -> tuple[str, ...]:
    """Why the card cannot run the configuration; of a card that is only a size nothing is known.

    Whether rows that are packed see each other is the peer's business.
    """
    assert target.model is not None
    if not _is_known(target.gpu):
        return ()
    alone = config.model_copy(update={"packing": False, "padding_free": False})
    if target.model.is_encoder_decoder:
        alone = alone.model_copy(update={"loss": "full"})
    return objections(alone, target.model, target.gpu)


def _is_known(gpu: GpuProfile | None) -> bool:
    """Whether more is known of the card than its size; a CPU is known."""
    return gpu is None or gpu.compute_capability is not None or gpu.gfx_target is not None


def _harms(config: RunConfig, gpu: GpuProfile | None) -> Iterator[tuple[Harm, Knobs]]:
    """Every combination of what changes the result, the unchanged one among them."""
    optimizers = [config.optim, *(optim for optim in OPTIMIZERS[1:] if optim != config.optim)]
    lengths = [config.max_length]
    while lengths[-1] // 2 >= SHORTEST:
        lengths.append(lengths[-1] // 2)
    for (base, bases), (length, rows), (optimizer, optim) in product(
        enumerate(_bases(config, gpu)), enumerate(lengths), enumerate(optimizers)
    ):
        method = int(config.method == "full" and base > 0)
        yield Harm(method, length, base, optimizer), bases | {"max_length": rows, "optim": optim}


def _bases(config: RunConfig, gpu: GpuProfile | None) -> Iterator[Knobs]:
    """The base as it is, and lossier ones; for a model that is trained as a whole, below an adapter."""
    yield {}
    if config.method not in ("full", "lora"):
        return
    lora = config.lora.model_dump() if config.lora else {"r": 16, "lora_alpha": 32}
    older = gpu is not None and _is_known(gpu) and not gpu.supports_bf16
    sixteen = "float16" if older else "bfloat16"
    if config.method == "full":
        yield {"method": "lora", "lora": lora, "dtype": sixteen}
    for quantization in quantizations(gpu):
        yield {"method": "qlora", "lora": lora, "dtype": sixteen, "quantization": quantization}


def _harmless(config: RunConfig, gpu: GpuProfile | None) -> Iterator[Way]:
    """Every combination of what leaves the result of training as it is, the unchanged one among them."""
    frugal_last = [list(_batches(config)), list(_evaluation_batches(config)), list(_checkpoints(config, gpu))]
    frugal_last.append(list(_losses(config, gpu)))
    for choice in product(*(range(len(options)) for options in frugal_last)):
        frugal = all(number == len(options) - 1 for number, options in zip(choice, frugal_last, strict=True))
        for parts in product(_precisions(config, gpu), _attentions(config, gpu)):
            knobs: Knobs = {}
            for part in (*(options[number] for number, options in zip(choice, frugal_last, strict=True)), *parts):
                knobs |= part
            yield Way(knobs, frugal)


def _fits(config: RunConfig, knobs: Knobs, target: Target) -> bool:
    """Whether the changed run fits, whoever could say it; True where that is not known."""
    try:
        return predict(RunConfig.model_validate(config.model_dump() | knobs), target).verdict == "fits"
    except (ValidationError, InputError):
        return True


def _batches(config: RunConfig) -> Iterator[Knobs]:
    yield {}
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    while rows % 2 == 0:
        rows, steps = rows // 2, steps * 2
        yield {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}


def _evaluation_batches(config: RunConfig) -> Iterator[Knobs]:
    yield {}
    if config.data is not None and config.data.eval_fraction and config.per_device_eval_batch_size > 1:
        yield {"per_device_eval_batch_size": 1}


def _checkpoints(config: RunConfig, gpu: GpuProfile | None) -> Iterator[Knobs]:
    yield {}
    if not config.gradient_checkpointing or config.checkpoint_every_n_layers > 1:
        yield {"gradient_checkpointing": True, "checkpoint_every_n_layers": 1}
    if not config.checkpoint_offload and gpu is not None:
        yield {"gradient_checkpointing": True, "checkpoint_every_n_layers": 1, "checkpoint_offload": True}


def _precisions(config: RunConfig, gpu: GpuProfile | None) -> Iterator[Knobs]:
    """Only what the card asks for: fp16 where it does not compute in bfloat16."""
    computes = gpu is None or gpu.supports_bf16 or not _is_known(gpu)
    if computes or (config.mixed_precision != "bf16" and config.dtype != "bfloat16"):
        yield {}
        return
    yield {"mixed_precision": "fp16", "dtype": "float32" if config.method == "full" else "float16"}
    yield {"mixed_precision": "no", "dtype": "float32"}


def _attentions(config: RunConfig, gpu: GpuProfile | None) -> Iterator[Knobs]:
    lacks_kernels = _is_known(gpu) and (gpu is None or not gpu.supports_flash_attention)
    if config.attn_implementation == "flash_attention_2" and lacks_kernels:
        yield {"attn_implementation": "sdpa"}
        yield {"attn_implementation": "sdpa", "packing": False}
    else:
        yield {}


def _losses(config: RunConfig, gpu: GpuProfile | None) -> Iterator[Knobs]:
    """A fused loss is a Triton kernel with peers, for which older cards are no target."""
    yield {}
    if config.loss == "full" and config.objective == "sft" and gpu is not None and gpu.supports_bf16:
        yield {"loss": "fused"}


def _fitting(
    file: PeerFile, before: RunConfig, knobs: Knobs, target: Target
) -> tuple[Prediction, tuple[KeyChange, ...]] | None:
    """What is predicted of the changed run and the keys that make it, if it fits and the peer can say it."""
    assert target.model is not None
    batch = knobs.get("per_device_train_batch_size", before.per_device_train_batch_size)
    if before.per_device_eval_batch_size > batch and (before.joins_rows or not _evaluates(before)):
        knobs = {"per_device_eval_batch_size": batch} | knobs
    try:
        config = RunConfig.model_validate(before.model_dump() | knobs)
        if file.peer.refusal(config) is not None and file.peer.model_key is not None:
            return None
        prediction = predict(config, target)
    except (ValidationError, InputError):
        return None
    if prediction.verdict != "fits" or hardware_objections(config, target):
        return None
    return prediction, key_changes(file, config)


def _evaluates(config: RunConfig) -> bool:
    return config.data is not None and config.data.eval_fraction > 0


def key_changes(file: PeerFile, config: RunConfig) -> tuple[KeyChange, ...]:
    """The keys of the file in which `config` differs from what it comes to now.

    Both are written as the peer would have them; where these two differ, the file changes. Older names of a key that
    changes are taken out.
    """
    now, then = file.peer.write(file.config), file.peer.write(config)
    values, changes = file.values, []
    for key in (*then, *(key for key in now if key not in then)):
        if now.get(key) == then.get(key):
            continue
        new = _joined(values.get(key), then.get(key)) if key not in now else then.get(key)
        changes += [KeyChange(key, values.get(key), new)]
        changes += [KeyChange(name, values[name], None) for name in _same_as(file.peer, key) if name in values]
    changes += [KeyChange(key, values[key], None) for key in file.peer.rivals(config) if values.get(key)]
    return tuple(change for change in changes if change.old != change.new)


def _joined(old: object, new: Any) -> Any:  # noqa: ANN401  # whatever a key may hold
    """What a list or a section of the file becomes when something is added: what others put there stays."""
    if isinstance(old, list) and isinstance(new, list):
        return [*old, *(item for item in new if item not in old)]
    return {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new


def _same_as(peer: Peer, key: str) -> tuple[str, ...]:
    """Other keys that say the same as `key`, whichever of them is the newer name."""
    groups = (
        {name, *older} for keys in peer.keys.lineage for name, older in keys.renamed.items() if key in (name, *older)
    )
    return tuple(sorted({name for group in groups for name in group} - {key}))


def _written(file: PeerFile, changes: tuple[KeyChange, ...], target: Target) -> Fix | None:
    """The changed file, if reading it again gives a run that fits."""
    assert target.model is not None
    text = file.document.with_values({change.key: change.new for change in changes}, file.peer.sections)
    document = file.document.replaced(text)
    try:
        again = read_peer_file(document, file.peer, file.config.model, target.model, target.gpu, file.unsaid)
        prediction = predict(again.config, replace(target, trainer=again.traits))
    except InputError:
        return None
    fits = prediction.verdict == "fits" and not hardware_objections(again.config, target)
    return Fix(changes, document, prediction) if fits else None
