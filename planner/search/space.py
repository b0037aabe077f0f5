"""Every configuration that a request leaves open, in groups that differ only in checkpointing and micro-batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, overload

from pydantic import ValidationError

from planner.config.run_config import (
    AUTOCAST,
    LOSS_PATHS,
    REFERRING,
    LossPath,
    Method,
    Objective,
    ParallelKnobs,
    Quantization,
    RunConfig,
)
from planner.data.lengths import proposed_length
from planner.search.request import Request
from planner.step.hardware import attention_implementations, objections, precisions, quantizations
from profiles.build_architecture import architecture
from profiles.errors import ConfigError
from profiles.model import ModelProfile
from profiles.peft_method import base_of, check_lora, find_method

Knobs = dict[str, Any]

OPTIMIZERS = ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")
"""The least lossy first. Others (Lion, Adafactor, SGD) want another learning rate, so only a user can choose them."""

CHECKPOINTS: tuple[Knobs, ...] = (
    {"gradient_checkpointing": True, "checkpoint_every_n_layers": 1, "checkpoint_offload": True},
    *(
        {"gradient_checkpointing": True, "checkpoint_every_n_layers": every, "checkpoint_offload": False}
        for every in (1, 2, 4, 8)
    ),
    {"gradient_checkpointing": False, "checkpoint_every_n_layers": 1, "checkpoint_offload": False},
)
"""From the least memory to the most."""

LAYOUTS: tuple[Knobs, ...] = (
    {"strategy": "ddp"},
    {"strategy": "fsdp"},
    {"strategy": "fsdp", "offload": "parameters"},
)
"""How several cards share a run, the simplest first. DeepSpeed and groups that split products or rows are a user's
choice: they need another engine, or what a model has to be able to do."""

BASES: tuple[Quantization | None, ...] = (None, "int8", "nf4", "fp4")
"""The least lossy first."""

LEARNING_RATES: dict[Objective, tuple[float, float]] = {
    "sft": (2e-5, 2e-4),
    "dpo": (1e-6, 1e-5),
    "ipo": (1e-6, 1e-5),
    "orpo": (1e-6, 1e-5),
    "kto": (1e-6, 1e-5),
    "reward": (1e-4, 1e-4),
}
"""Of full fine-tuning and of adapters. sft: Alpaca and the default of TRL; the QLoRA runs of 7B and 13B
(arXiv:2305.14314). Others: the defaults of TRL 1.16; its examples of dpo have ten times the rate with LoRA."""

ENCODER_DECODER_LOSSES: tuple[LossPath, ...] = ("full",)
"""The Seq2SeqTrainer of Transformers has the model's own loss."""

DEFAULT_RANK = 16
RANKS = (DEFAULT_RANK, 8)
"""Ranks that an open rank may take, the wanted one first."""

DEFAULT_LENGTH = 2048
SHORTEST_LENGTH = 512


@dataclass(frozen=True, slots=True, order=True)
class Lossiness:
    """How much precision a configuration gives away, in the order in which it hurts: base, weights, optimizer."""

    base: int
    weights: int
    optimizer: int

    @property
    def without_optimizer(self) -> tuple[int, int]:
        """The same without the optimizer."""
        return self.base, self.weights


@dataclass(frozen=True, slots=True)
class Row(Sequence[RunConfig]):
    """Configurations alike but for the micro-batch, which rises; each is made when it is asked for."""

    first: RunConfig
    checkpointing: Knobs
    batches: tuple[Knobs, ...]

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, index: int) -> RunConfig: ...

    @overload
    def __getitem__(self, index: slice) -> "Row": ...

    def __getitem__(self, index: int | slice) -> "RunConfig | Row":
        if isinstance(index, slice):
            return Row(self.first, self.checkpointing, self.batches[index])
        return self.first.model_copy(update=self.checkpointing | self.batches[index])


@dataclass(frozen=True, slots=True)
class Group:
    """Configurations alike but for checkpointing and micro-batch.

    `rows[i][j]` has the i-th checkpointing and the j-th micro-batch, each from the least memory to the most.
    """

    lossiness: Lossiness
    rows: tuple[Row, ...]


def openings(request: Request) -> tuple[tuple[int, int], ...]:
    """Lengths and ranks to try one after the other: what the user gave, else the wanted value and then smaller ones."""
    length, rank = request.knobs.get("max_length"), request.knobs.get("lora", {}).get("r")
    lengths = (length,) if length else _open_lengths(request)
    ranks = (rank,) if rank else RANKS
    return tuple((some_length, ranks[0]) for some_length in lengths) + tuple((lengths[-1], r) for r in ranks[1:])


def _open_lengths(request: Request) -> tuple[int, ...]:
    limit = request.model.max_position_embeddings
    wanted = DEFAULT_LENGTH
    if request.lengths is not None:
        wanted = proposed_length(request.lengths, limit).max_length
    lengths = [min(wanted, limit) if limit else wanted]
    while lengths[-1] // 2 >= SHORTEST_LENGTH:
        lengths.append(lengths[-1] // 2)
    return tuple(lengths)


def groups(request: Request, max_length: int, rank: int) -> Iterator[Group]:
    """The groups of one length and rank. Raises ConfigError for knobs that contradict each other or the card."""
    batches = tuple(
        {
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": steps,
            "per_device_eval_batch_size": request.knobs.get("per_device_eval_batch_size", micro),
        }
        for micro, steps in request.batches()
    )
    offered = tuple(option for option in CHECKPOINTS if request.gpu or not option["checkpoint_offload"])
    checkpoints = _valid_checkpoints(_pinned(offered, request.knobs))
    refusals, num_found = list[str](), 0
    for lossiness, knobs in _fixed_knobs(request):
        refused = [_adapter_refusal(request, knobs | row) for row in checkpoints]
        refusals += filter(None, refused)
        trained = [row for row, refusal in zip(checkpoints, refused, strict=True) if refusal is None]
        if not trained:
            continue
        num_found += 1
        first = _config(request, knobs | trained[0] | batches[0], max_length, rank)
        for objection in objections(first, request.model, request.gpu):
            raise ConfigError(objection)
        yield Group(lossiness, tuple(Row(first, row, batches) for row in trained))
    if not num_found:
        raise ConfigError(refusals[0])


def _fixed_knobs(request: Request) -> Iterator[tuple[Lossiness, Knobs]]:
    """Everything but checkpointing and micro-batch, with the precision that each choice gives away."""
    pins = request.knobs
    codes = attention_implementations(architecture(request.model), request.gpu)
    attention = _pinned([{"attn_implementation": code} for code in codes], pins)
    losses = _pinned([{"loss": loss} for loss in loss_paths(request.objective, request.model)], pins)
    optimizers = _pinned([{"optim": name} for name in OPTIMIZERS if request.gpu or "paged" not in name], pins)
    references = _references(request)
    layouts, refusals, num_found = _layouts(request), list[str](), 0
    for method, quantization in _bases(request):
        known = precisions(request.model, request.gpu, method)
        dtypes = _pinned([{"dtype": p.dtype, "mixed_precision": p.mixed_precision} for p in known], pins)
        base = {"method": method, "quantization": quantization}
        for (weights, dtype), (optimizer, optim), layout, loss, code, reference in product(
            enumerate(dtypes), enumerate(optimizers), layouts, losses, attention, references
        ):
            section, shared = layout
            if refusal := _refusal(section, base | dtype | optim):
                refusals.append(refusal)
                continue
            num_found += 1
            lossiness = Lossiness(BASES.index(quantization), weights, min(optimizer, 1))
            yield lossiness, base | dtype | optim | shared | loss | code | reference
    if refusals and not num_found:
        raise ConfigError(refusals[0])


def complexity(config: RunConfig) -> tuple[bool, bool, bool]:
    """How much machinery the layout of `config` takes, the simplest first: nothing is split, weights, rows or products;
    nothing waits in host memory."""
    knobs = config.parallel
    if knobs is None:
        return False, False, False
    return knobs.offload != "none", knobs.splits_work, knobs.strategy != "ddp"


def _layouts(request: Request) -> tuple[tuple[ParallelKnobs | None, Knobs], ...]:
    """The ways to share the run that the user leaves open, as a section and as knobs; one card has none.

    Raises ConfigError if none is possible.
    """
    if request.cluster.world_size == 1:
        return ((None, {}),)
    pinned, refusals, layouts = request.knobs.get("parallel") or {}, [], []
    for layout in _pinned([{"offload": "none"} | layout for layout in LAYOUTS], pinned):
        try:
            section = ParallelKnobs.model_validate({**pinned, **layout})
        except ValidationError as error:
            refusals.append(error.errors()[0]["msg"].removeprefix("Value error, "))
            continue
        layouts.append((section, {**request.cluster.knobs, "parallel": section.model_dump()}))
    if not layouts:
        raise ConfigError(refusals[0])
    return tuple(layouts)


def _refusal(section: ParallelKnobs | None, knobs: Knobs) -> str | None:
    """Why an engine cannot share out such weights or such an optimizer; None if it can."""
    if section is None:
        return None
    try:
        section.check_base(knobs["method"], knobs["quantization"], knobs["dtype"], AUTOCAST[knobs["mixed_precision"]])
        section.check_optimizer(knobs["optim"])
    except ValueError as error:
        return str(error)
    return None


def _adapter_refusal(request: Request, knobs: Knobs) -> str | None:
    """Why the adapter that the user named does not train with `knobs`; None if it does, or is plain LoRA."""
    peft, lora = request.knobs.get("peft"), request.knobs.get("lora")
    base = base_of(knobs["quantization"], knobs["dtype"])
    try:
        if peft:
            find_method(peft["type"]).check_base(base, knobs)
        elif lora:
            check_lora(lora, base, knobs)
    except ConfigError as error:
        return error.message
    return None


def _references(request: Request) -> tuple[Knobs, ...]:
    """Whether a reference answers in each step or once before training, where there is one and the user left it open.

    It learns the same either way. Asked before, it takes no memory and no time in the step, but a pass over the data.
    """
    given = request.knobs.get("preference") or {}
    if request.objective not in REFERRING or "precompute_ref_log_probs" in given:
        return ({},)
    return tuple({"preference": {**given, "precompute_ref_log_probs": before}} for before in (False, True))


def loss_paths(objective: Objective, model: ModelProfile) -> tuple[LossPath, ...]:
    """The ways to the loss that there are for `model`, the usual one first."""
    return ENCODER_DECODER_LOSSES if model.is_encoder_decoder and objective == "sft" else LOSS_PATHS[objective]


def _learning_rate(objective: Objective, method: Method) -> float:
    full, adapter = LEARNING_RATES[objective]
    return full if method == "full" else adapter


def _bases(request: Request) -> tuple[tuple[Method, Quantization | None], ...]:
    """Methods and quantizations that answer the request, the least lossy first."""
    method = request.knobs.get("method", request.method)
    if method == "auto" and "quantization" not in request.knobs:
        return (("lora", None), *(("qlora", quantization) for quantization in quantizations(request.gpu)))
    quantization = request.knobs.get("quantization", "nf4" if method == "qlora" else None)
    if method == "auto":
        method = "qlora" if quantization else "lora"
    return ((method, quantization),)


def _pinned(options: tuple[Knobs, ...] | list[Knobs], pins: Mapping[str, Any]) -> tuple[Knobs, ...]:
    """`options` with the user's values in place of their own, each once."""
    overlaid = [{name: pins.get(name, value) for name, value in option.items()} for option in options]
    return tuple(option for index, option in enumerate(overlaid) if option not in overlaid[:index])


def _valid_checkpoints(options: tuple[Knobs, ...]) -> tuple[Knobs, ...]:
    """Those without settings that have no effect; all, if the user's values leave none, so that RunConfig objects."""
    valid = tuple(
        option
        for option in options
        if option["gradient_checkpointing"]
        or (option["checkpoint_every_n_layers"] == 1 and not option["checkpoint_offload"])
    )
    return valid or options


def _config(request: Request, knobs: Knobs, max_length: int, rank: int) -> RunConfig:
    values = {
        "model": request.loadable_name,
        "gpu": request.gpu.name if request.gpu else None,
        "learning_rate": _learning_rate(request.objective, knobs["method"]),
        "max_length": max_length,
        **knobs,
        **request.knobs,
        "lora": _lora(request, knobs["method"], rank),
        "preference": knobs.get("preference", request.knobs.get("preference")),
        "parallel": knobs.get("parallel"),
    }
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{place}: {message}" if place else message) from error


def _lora(request: Request, method: Method, rank: int) -> Knobs | None:
    given = request.knobs.get("lora")
    return given if method in ("full", "peft") else {"r": rank, "lora_alpha": 2 * rank} | (given or {})
