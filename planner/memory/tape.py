"""Autograd on sizes: which bytes are alive at each operator of a forward and a backward pass.

A `Tape` records operators as a model runs them: what each reads, what it makes, what autograd keeps for it. Replaying
the record counts live bytes as reference counting does, in microseconds and without torch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

BLOCK_BYTES = 512
"""Every tensor takes a multiple of this from torch's CUDA allocator (kMinBlockSize, c10/core/AllocatorConfig.h)."""


def rounded(num_bytes: int) -> int:
    """Bytes of the allocator's blocks that hold a tensor of `num_bytes`."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(eq=False, slots=True)
class Tensor:
    """A tensor by its name, its elements and the bytes of one.

    A view has a `base`, whose memory it shares; its gradient has memory of its own.
    """

    name: str
    elements: int
    itemsize: int
    requires_grad: bool = True
    base: "Tensor | None" = None
    bytes: int = field(init=False)
    storage: "Tensor" = field(init=False, repr=False)
    """The tensor whose memory this one uses."""

    def __post_init__(self) -> None:
        self.bytes = rounded(self.elements * self.itemsize)
        self.storage = self.base.storage if self.base else self


@dataclass(eq=False, slots=True)
class Op:
    """One operator.

    `scratch` and `backward_scratch` are bytes that live only while it runs; the latter is negative where a gradient is
    written over what was saved. `parameter_gradients` are bytes of
    gradients of weights that its backward makes and that stay. `cached` tensors live until the autocast region ends.
    With `passes_grad` its backward makes nothing: the inputs get the very gradient that came, as in an addition.
    `unhooked` tensors are held by an autograd function as plain attributes, where checkpointing cannot drop them.
    `module` is the name of the module that runs it, which the tape knows.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...] = ()
    saved: tuple[Tensor, ...] = ()
    scratch: int = 0
    backward_scratch: int = 0
    passes_grad: bool = False
    parameter_gradients: int = 0
    cached: tuple[Tensor, ...] = ()
    unhooked: tuple[Tensor, ...] = ()
    module: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """The most bytes alive in a replay, at which operator, and the tensors behind them (without gradients)."""

    bytes: int
    op: str
    tensors: tuple[Tensor, ...]


@dataclass(slots=True)
class GradientBuffer:
    """Memory of a gradient, and how many tensors it is the gradient of."""

    bytes: int
    owners: int = 0


@dataclass(slots=True)
class Tape:
    """Operators in the order of the forward pass, from `source` to the outputs of the last.

    `adds_in_place` says whether autograd adds a second gradient of a tensor to the first. It does, except while a
    Python dispatch mode counts live bytes, as on a CPU (ATen `isTensorSubclassLike`, `input_buffer.cpp`). Tensors
    `outside` are kept by somebody else, such as an encoder's output; only their gradients count. `module` is the name
    of the module at work.
    """

    source: Tensor
    adds_in_place: bool = True
    ops: list[Op] = field(default_factory=list)
    outside: tuple[Tensor, ...] = ()
    module: str = ""

    @contextmanager
    def inside(self, module: str) -> Iterator[None]:
        """While active, what is added is run by `module`."""
        caller, self.module = self.module, module
        yield
        self.module = caller

    def add(self, op: Op) -> Tensor:
        """The first output of `op`, which is now the last operator.

        Where neither an input nor a weight has a gradient, autograd keeps nothing.
        """
        op.module = self.module
        if not op.parameter_gradients and not any(tensor.requires_grad for tensor in op.inputs):
            op.saved, op.unhooked = (), ()
            for tensor in op.outputs:
                tensor.requires_grad = False
        self.ops.append(op)
        return op.outputs[0]

    def hold(self, *tensors: Tensor) -> None:
        """Note that variables of the model's code keep `tensors` alive up to here."""
        self.ops.append(Op("hold", tensors))

    @property
    def output(self) -> Tensor:
        """What the tape ends in."""
        return next((op.outputs[0] for op in reversed(self.ops) if op.outputs), self.source)

    def saved(self) -> tuple[Tensor, ...]:
        """What autograd keeps for the backward pass, each tensor once, in the order of the forward pass."""
        kept = dict.fromkeys(tensor.storage for op in self.ops for tensor in op.saved)
        return tuple(storage for storage in kept if storage not in self.outside)

    def saved_by_module(self) -> Iterator[tuple[str, Tensor]]:
        """The saved tensors with the module that made each; the source's is the empty name."""
        makers = {tensor.storage: op.module for op in reversed(self.ops) for tensor in op.saved}
        makers |= {self.source: ""} | {tensor.storage: op.module for op in reversed(self.ops) for tensor in op.outputs}
        return ((makers[tensor], tensor) for tensor in self.saved())

    def saved_bytes(self) -> int:
        """Bytes of all saved tensors."""
        return sum(tensor.bytes for tensor in self.saved())

    def unhooked(self) -> tuple[Tensor, ...]:
        """What stays alive for the backward pass even under checkpointing, each tensor once."""
        return tuple(dict.fromkeys(tensor.storage for op in self.ops for tensor in op.unhooked))

    def cached_bytes(self) -> int:
        """Bytes that stay until the autocast region ends: 16-bit copies of trainable weights."""
        return sum(tensor.bytes for op in self.ops for tensor in op.cached)

    def parameter_gradient_bytes(self) -> int:
        """Bytes of the gradients that the backward pass leaves behind."""
        return sum(op.parameter_gradients for op in self.ops)

    def forward_peak(self, kept: tuple[Tensor, ...] = ()) -> Moment:
        """The peak of the forward pass if the tensors in `kept` stay to its end: saved ones, or none in evaluation."""
        return self._forward_peak(self.ops, kept)

    def recompute_peak(self) -> Moment:
        """The peak of the forward pass when the backward pass of a checkpointed layer repeats it.

        That is when the first saved tensor is needed, with the gradients that are there by then. It stops at the last
        that is, before what this operator makes if only its inputs are saved (`torch.utils.checkpoint`, early stop).
        """
        last = max((i for i, op in enumerate(self.ops) if set(op.saved) - set(op.unhooked)), default=-1)
        if last < 0:
            return self.forward_peak(self.saved())
        waiting = self._gradients_behind(last)
        op = self.ops[last]
        unfinished = not set(op.saved).intersection(op.outputs)
        again = [*self.ops[:last], replace(op, outputs=(), scratch=0) if unfinished else op]
        peak = self._forward_peak(again, self.saved())
        return replace(peak, bytes=peak.bytes + waiting)

    def _forward_peak(self, ops: Sequence[Op], kept: tuple[Tensor, ...]) -> Moment:
        """The peak of the first `ops`; what they make for later ones stays."""
        last_use = self._last_uses(kept)
        stays = set(kept)
        born, gone = {self.source: -1}, dict[Tensor, int]()
        now = most = self.source.bytes
        at = -1
        for index, op in enumerate(ops):
            made = [tensor.storage for tensor in (*op.outputs, *op.cached)]
            for storage in [*made, *(tensor.storage for tensor in op.saved if tensor.storage in stays)]:
                if storage not in born:
                    born[storage] = index
                    now += storage.bytes
            if now + op.scratch > most:
                most, at = now + op.scratch, index
            for tensor in (*op.inputs, *op.outputs):
                storage = tensor.storage
                if last_use.get(storage) == index and storage in born and storage not in gone:
                    gone[storage] = index
                    now -= storage.bytes
        alive = tuple(tensor for tensor, birth in born.items() if birth <= at <= gone.get(tensor, at))
        return Moment(most, ops[at].name if at >= 0 else "input", alive)

    def _last_uses(self, kept: tuple[Tensor, ...]) -> dict[Tensor, int]:
        """For each tensor that dies within the forward pass, the index of the operator that uses it last."""
        last_use = {tensor.storage: index for index, op in enumerate(self.ops) for tensor in (*op.inputs, *op.outputs)}
        for tensor in (self.output.storage, *(tensor for op in self.ops for tensor in op.cached), *kept):
            last_use.pop(tensor, None)
        return last_use

    def backward_peak(self) -> Moment:
        """The peak of the backward pass: saved tensors not yet released, gradients, and the one that comes in."""
        uses = Counter(tensor.storage for op in self.ops for tensor in op.saved if tensor.storage not in self.outside)
        gradients = {self.output: GradientBuffer(self.output.bytes, owners=1)}
        now = sum(storage.bytes for storage in uses) + self.output.bytes
        peak = Moment(now, "gradient of the output", tuple(uses))
        for op in reversed(self.ops):
            incoming, receivers = _reached(op, gradients)
            if not incoming:
                continue
            now += op.parameter_gradients + _new_gradients(op, receivers)
            sums = 0 if self.adds_in_place else sum(tensor.bytes for tensor in receivers if tensor in gradients)
            scratch = max(op.backward_scratch, sums) if sums else op.backward_scratch
            if now + scratch > peak.bytes:
                peak = Moment(now + scratch, f"gradient of {op.name}", tuple(uses))
            for storage in [tensor.storage for tensor in op.saved if tensor.storage not in self.outside]:
                uses[storage] -= 1
                if not uses[storage]:
                    del uses[storage]
                    now -= storage.bytes
            now -= _accumulate(op, receivers, incoming, gradients)
        return peak

    def _gradients_behind(self, last: int) -> int:
        """Bytes of gradients when the backward pass comes to the operator with the index `last`."""
        gradients = {self.output: GradientBuffer(self.output.bytes, owners=1)}
        now = self.output.bytes
        for op in reversed(self.ops[last + 1 :]):
            incoming, receivers = _reached(op, gradients)
            if incoming:
                now += _new_gradients(op, receivers)
                now -= _accumulate(op, receivers, incoming, gradients)
        return now


def _reached(op: Op, gradients: dict[Tensor, GradientBuffer]) -> tuple[list[GradientBuffer], list[Tensor]]:
    """The gradients that come to `op` in the backward pass, taken from `gradients`, and the inputs that get one."""
    incoming = [gradients.pop(tensor) for tensor in op.outputs if tensor in gradients]
    return incoming, [tensor for tensor in op.inputs if tensor.requires_grad]


def _new_gradients(op: Op, receivers: list[Tensor]) -> int:
    return 0 if op.passes_grad else sum(tensor.bytes for tensor in receivers)


def _accumulate(
    op: Op, receivers: list[Tensor], incoming: list[GradientBuffer], gradients: dict[Tensor, GradientBuffer]
) -> int:
    """Hand gradients on to `receivers`; the bytes that this frees.

    A second gradient of a tensor is added to the first in place and freed, and so is what nobody owns any more.
    """
    freed = 0
    for tensor in receivers:
        buffer = incoming[0] if op.passes_grad else GradientBuffer(tensor.bytes)
        if tensor not in gradients:
            gradients[tensor] = buffer
            buffer.owners += 1
        elif not op.passes_grad:
            freed += buffer.bytes
    for buffer in incoming:
        buffer.owners -= 1
        if buffer.owners == 0:
            freed += buffer.bytes
    return freed
