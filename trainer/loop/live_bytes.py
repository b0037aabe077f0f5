"""Peak of live tensor bytes of a step that runs on a CPU, counted tensor by tensor."""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Self

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.memory.tape import rounded
from trainer.loop.resizing import resizes_told

Phase = Literal["load", "forward", "backward", "step"]


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]
    """While active, counts the bytes of each storage on the CPU from the first operation that shows it to its end.

    A storage counts once, however many tensors view it, in blocks as large as those of CUDA's allocator. `peaks` has
    the largest count of each phase; the backward pass is told from the forward pass by itself, the others are set in
    `phase`. Evaluation counts as a forward pass. A storage that is resized counts with its size of the moment: so FSDP
    gives back weights that it has gathered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.phase: Phase = "forward"
        self.peaks: dict[Phase, int] = {}
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._sizes: dict[int, int] = {}

    def __enter__(self) -> Self:
        """Count from here on, with what was resized in the meantime."""
        for reference in list(self._known.values()):
            if (storage := reference()) is not None:
                self._resized(storage)
        self._telling = resizes_told(self._resized)
        self._telling.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        """Count no longer."""
        self._telling.__exit__(None, None, None)
        super().__exit__(*error)

    @property
    def peak(self) -> int:
        """The largest count so far, in bytes."""
        return max(self.peaks.values(), default=0)

    def watch(self, tensors: Iterable[torch.Tensor], phase: Phase) -> None:
        """Count `tensors`, which exist already, as part of `phase`."""
        for tensor in tensors:
            self._count(tensor)
        self._note(phase)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run the operation; count what it reads and what it makes."""
        kwargs = kwargs or {}
        # What an operation reads may be older than the count, such as the constants of a quantized weight.
        for leaf in tree_leaves((args, kwargs)):
            self._count(leaf)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            self._count(leaf)
        in_backward = torch._C._current_graph_task_id() != -1
        self._note("backward" if in_backward else self.phase)
        return result

    def _note(self, phase: Phase) -> None:
        self.peaks[phase] = max(self.now, self.peaks.get(phase, 0))

    def _count(self, leaf: object) -> None:
        if isinstance(leaf, DTensor):
            # What it stands for is spread over the processes; this one holds its share.
            leaf = leaf._local_tensor
        if not isinstance(leaf, torch.Tensor) or leaf.device.type != "cpu":
            return
        storage = leaf.untyped_storage()
        key = id(storage)
        if key not in self._known:
            self._known[key] = weakref.ref(storage, partial(self._freed, key))
            self._sizes[key] = rounded(storage.nbytes())
            self.now += self._sizes[key]

    def _resized(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            before, self._sizes[key] = self._sizes[key], rounded(storage.nbytes())
            self.now += self._sizes[key] - before

    def _freed(self, key: int, _: object) -> None:
        del self._known[key]
        self.now -= self._sizes.pop(key)
