"""Records which tensors a step makes and drops, as a stream of allocations."""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from calibration.allocator.stream import Allocation, Kind, Phase, Stream
from calibration.trace.module_path import BALANCE, ModulePath

Kernel = Callable[..., object]
Scratch = Callable[..., list[torch.Tensor]]
aten = torch.ops.aten

VALUE_OPERATORS = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
BY_OWNER = ("load", "step")
"""Phases in which no layer is at work: what happens there belongs to the layer of the parameter that it is for."""

TORCH_WRAPPERS = (str(Path(torch.__file__).parent / "_dynamo"), str(Path(torch.__file__).parent / "_compile"), __file__)
"""Where frames lie that torch puts between an operator and its caller."""

JOINS = frozenset({"cat", "stack"})

ADDED_INTO = {"add": 2, "scatter": 1, "scatter_add": 1, "index_put": 1}
"""Operators that autograd has write into one of so many arguments."""

MATRIX_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm", "gemm_4bit", "_grouped_mm"})


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """While active, on top of a mode of fake tensors, writes every new storage and every end of one into `stream`.

    `kernels` replaces operators by functions that make what a GPU's kernel makes; what those make is recorded.
    `scratch` makes what else is alive while an operator works.
    `in_place` lets autograd add gradients in place, as it does where no Python mode looks on.
    `all_true` answers questions about values, which fake tensors do not have: whether every position of a batch is
    attended to. `workspace_bytes` is cuBLAS's workspace, which the first matrix product of each thread allocates: one
    in the forward pass, one in the backward pass.
    """

    def __init__(
        self,
        path: ModulePath,
        kernels: Mapping[object, Kernel],
        scratch: Mapping[object, Scratch] | None = None,
        *,
        in_place: bool = True,
        all_true: bool = True,
        workspace_bytes: int = 0,
    ) -> None:
        super().__init__()
        self.stream = Stream()
        self._begun_at: list[int] = []
        self._phase: Phase = "load"
        self.allocation_layers: list[str | None] = []
        self.event_layers: list[str | None] = []
        self.parts: dict[int, list[tuple[str | None, int]]] = {}
        self._path = path
        self._kernels = kernels
        self._scratch = scratch or {}
        self._in_place = in_place
        self._all_true = all_true
        self._workspace_bytes = workspace_bytes
        self._threads_with_workspace: set[bool] = set()
        self._alive: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._unsettled: list[int] = []
        self._at_layer: str | None = None
        self._sees = True
        self._names: dict[object, str] = {}
        self._replaced: set[object] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator of torch
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operator, or what stands for it on a GPU, and record what it makes."""
        if func in VALUE_OPERATORS:
            return self._answer(args[0])
        name = self._name(func)
        if self._path.in_balance:
            self._follow(args)
        if self._workspace_bytes and name in MATRIX_PRODUCTS:
            self._need_workspace()
        held = self._held_meanwhile(func, args, kwargs or {})
        kernel = self._kernels.get(func)
        if kernel is not None and func not in self._replaced:
            # What stands for an operator may call it.
            self._replaced.add(func)
            with self:
                result = kernel(*args, **(kwargs or {}))
            self._replaced.remove(func)
        elif (gradient := self._sum_in_place(name, args)) is not None:
            result = gradient
        else:
            result = func(*args, **(kwargs or {}))
        self._see(result, name, args)
        del held
        return result

    def _held_meanwhile(self, func: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
        """What an operator takes besides its result while it works."""
        makes = self._scratch.get(func)
        if makes is None:
            return []
        with self:
            return makes(*args, **kwargs)

    def begin(self, phase: Phase) -> None:
        """Note that what follows belongs to `phase`; a backward pass tells itself."""
        self._phase = phase

    def label(self, tensor: torch.Tensor, name: str, module: str, kind: Kind) -> None:
        """Say what a tensor that is alive turned out to be; one that is not known yet is recorded now."""
        storage = _own_part(tensor).untyped_storage()
        if storage._cdata not in self._alive:
            allocation = Allocation(storage.nbytes(), name, module, self._phase_now(), kind)
            self._allocate(storage, allocation, self._path.layer_of(module))
        index = self._alive[storage._cdata][0]
        allocation = self.stream.allocations[index]
        allocation.name, allocation.module, allocation.kind = name, module, kind
        layer = self.allocation_layers[index] = self._path.layer_of(module)
        if allocation.phase in BY_OWNER:
            self.event_layers[self._begun_at[index]] = layer

    def label_joined(self, tensor: torch.Tensor, name: str, parts: Mapping[str, int], kind: Kind) -> None:
        """Say what a tensor is that has so many bytes for each parameter, by its name: it grows with the layers."""
        self.label(tensor, name, "", kind)
        index = self._alive[_own_part(tensor).untyped_storage()._cdata][0]
        self.parts[index] = [(self._path.layer_of(name), size) for name, size in parts.items()]

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """Record nothing of what is made meanwhile: it is not the allocator's."""
        self._sees = False
        try:
            yield
        finally:
            self._sees = True

    def drop(self, tensor: torch.Tensor) -> None:
        """Record that a tensor's memory is given back although the tensor goes on to exist."""
        self._freed(tensor.untyped_storage()._cdata, None)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Record that a storage has another size: so FSDP gives back weights that it has gathered, and gathers anew."""
        if storage._cdata not in self._alive:
            return
        index, _ = self._alive[storage._cdata]
        known = self.stream.allocations[index]
        self._freed(storage._cdata, None)
        module, layer = self._path.here()
        self._allocate(storage, Allocation(storage.nbytes(), known.name, module, self._phase_now(), known.kind), layer)

    def _answer(self, tensor: torch.Tensor) -> bool | int | float:
        """A value that a step asks for. All of a mask is true or not, no number is infinite, and a chance is taken."""
        if tensor.dtype == torch.bool:
            known = self._known(tensor)
            made_by = self.stream.allocations[known[0]].name if known else None
            return self._all_true if made_by == "all" else made_by != "any"
        return 1.0 if tensor.is_floating_point() else 1

    def _name(self, func: Any) -> str:  # noqa: ANN401
        if func not in self._names:
            self._names[func] = func.overloadpacket.__name__
        return self._names[func]

    def _sum_in_place(self, name: str, args: tuple[Any, ...]) -> torch.Tensor | None:
        """The tensor that autograd adds gradients into: one that nobody else holds.

        It does so in place, but not while a Python mode is active (ATen `isTensorSubclassLike`, which is asked in
        `input_buffer.cpp` for sums, in `FunctionsManual.cpp` for gradients of what was gathered, indexed or selected).
        """
        written = ADDED_INTO.get(name)
        if not written or not self._in_place or torch._C._current_graph_task_id() == -1 or not _called_by_autograd():
            return None
        return next((g for g in args[:written] if _has_sole_owner(g)), None)

    def _need_workspace(self) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward not in self._threads_with_workspace:
            self._threads_with_workspace.add(in_backward)
            allocation = Allocation(self._workspace_bytes, "cuBLAS workspace", "", self._phase_now(), "workspace")
            self._begin(allocation, None)

    def _phase_now(self) -> Phase:
        if torch._C._current_graph_task_id() != -1:
            self._phase = "backward"
        return self._phase

    def _see(self, result: object, name: str, args: tuple[Any, ...]) -> None:
        """Record each storage in `result` that is new."""
        if not self._sees:
            return
        for position, tensor in enumerate(_tensors(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive:
                module, at = self._path.here()
                phase = self._phase_now()
                layer = at if module == BALANCE else self._path.layer_of(module)
                if phase in BY_OWNER:
                    layer = self._layer_of_argument(args, result, position)
                self._settle(phase)
                index = self._allocate(storage, Allocation(storage.nbytes(), name, module, phase, "temporary"), layer)
                if phase == "forward" or self._path.in_forward:
                    self._unsettled.append(index)
                if name in JOINS:
                    self.parts[index] = list(self._parts(args[0]))

    def _parts(self, tensors: Sequence[torch.Tensor]) -> Iterator[tuple[str | None, int]]:
        """The layer and the bytes of each tensor that is joined with others."""
        for tensor in tensors:
            known = self._known(tensor)
            yield self.allocation_layers[known[0]] if known else None, tensor.nbytes

    def _follow(self, args: tuple[Any, ...]) -> None:
        """Go to the layer whose tensors are read."""
        tensors = [arg for arg in args if _has_memory(arg)]
        known = map(self._known, tensors)
        layer = next((at for at in (self.allocation_layers[found[0]] for found in known if found) if at), None)
        if layer:
            learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
            self._path.go_to(layer, with_node=learns)

    def _settle(self, phase: Phase) -> None:
        """Once autograd goes on backward, what the forward pass left alive was saved for it."""
        if phase == "backward" and self._unsettled and not self._path.in_forward:
            alive = {index for index, _ in self._alive.values()}
            for index in self._unsettled:
                if index in alive:
                    self.stream.allocations[index].kind = "saved tensor"
            self._unsettled.clear()

    def _layer_of_argument(self, args: tuple[Any, ...], result: object, position: int) -> str | None:
        """An optimizer works on parameters in order: what it makes belongs to the layer of what it is made from, and
        what it makes of nothing to the layer that it is at.
        """
        first = args[0] if args else None
        if isinstance(first, (list, tuple)) and first and isinstance(first[0], torch.Tensor):
            each = isinstance(result, (list, tuple)) and position < len(first)
            sources = [first[position]] if each else []
        else:
            sources = [arg for arg in args if _has_memory(arg)]
            if not sources:
                return self._at_layer
        known = self._known(sources[0]) if sources else None
        self._at_layer = self.allocation_layers[known[0]] if known else None
        return self._at_layer

    def _known(self, tensor: torch.Tensor) -> tuple[int, weakref.ref[torch.UntypedStorage]] | None:
        """The allocation that holds `tensor`, if it is recorded."""
        return self._alive.get(_own_part(tensor).untyped_storage()._cdata)

    def _allocate(self, storage: torch.UntypedStorage, allocation: Allocation, layer: str | None) -> int:
        key = storage._cdata
        index = self._begin(allocation, layer)
        self._alive[key] = index, weakref.ref(storage, partial(self._freed, key))
        return index

    def _begin(self, allocation: Allocation, layer: str | None) -> int:
        self.stream.begin(allocation.phase)
        self.allocation_layers.append(layer)
        self._begun_at.append(len(self.event_layers))
        self.event_layers.append(layer if allocation.phase in BY_OWNER else self._path.here()[1])
        return self.stream.allocate(allocation)

    def _freed(self, key: int, _: object) -> None:
        index, _reference = self._alive.pop(key)
        phase = self._phase_now()
        self.stream.begin(phase)
        self.event_layers.append(self.allocation_layers[index] if phase in BY_OWNER else self._path.here()[1])
        self.stream.free(index)


def _own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that is spread over several; any other as it is."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _tensors(result: object) -> Iterator[torch.Tensor]:
    """The tensors in a result that have memory: a sparse one has it in its positions and its values."""
    if _has_memory(result):
        yield _own_part(result)
    elif isinstance(result, torch.Tensor):
        yield from (result._indices(), result._values())
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from _tensors(part)


def _has_memory(tensor: object) -> TypeGuard[torch.Tensor]:
    return isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided


def _has_sole_owner(tensor: object) -> bool:
    """Whether no other tensor shares the memory: the storage is counted by the tensor and by the one who asks."""
    return _has_memory(tensor) and torch._C._storage_Use_Count(tensor.untyped_storage()._cdata) == 2


def _called_by_autograd() -> bool:
    """Whether an operator comes from autograd's engine itself and not from Python code that it runs."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(TORCH_WRAPPERS):
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "_engine_run_backward"
