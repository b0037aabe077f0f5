"""The workspaces of cuBLAS, which a trace on a CPU does not see, at the places where a GPU asks for them."""

from typing import Final

from calibration.stream import Allocation, Phase, Stream

# The forward pass runs in the main thread and the backward pass in one of autograd: each has a handle, and each handle
# a workspace, which it keeps (getCurrentCUDABlasHandle in aten/src/ATen/cuda/CublasHandlePool.cpp).
_THREADS: Final[tuple[Phase, ...]] = ("forward", "backward")
_PRODUCTS: Final = frozenset({"mm", "addmm", "bmm", "baddbmm", "linear", "matmul"})


def with_workspaces(stream: Stream, workspace_bytes: int) -> Stream:
    """The stream with a workspace behind the output of the first matrix product of each thread.

    Where no operator has the name of a product, the workspace is the first that the phase asks for.
    """
    for phase in _THREADS:
        stream = _with_workspace(stream, workspace_bytes, phase)
    return stream


def _with_workspace(stream: Stream, workspace_bytes: int, phase: Phase) -> Stream:
    which = next((number for number, (_, name) in enumerate(stream.phases) if name == phase), None)
    if which is None:
        return stream
    earlier, later = stream.phases[: which + 1], stream.phases[which + 1 :]
    start, end = earlier[-1][0], later[0][0] if later else len(stream.events)
    at = next((place + 1 for place in range(start, end) if _is_product(stream, stream.events[place])), start)
    workspace = Allocation(workspace_bytes, "cublas workspace", "", phase, "workspace")
    return Stream(
        allocations=[*stream.allocations, workspace],
        events=[*stream.events[:at], len(stream.allocations), *stream.events[at:]],
        phases=earlier + [(position + 1, name) for position, name in later],
    )


def _is_product(stream: Stream, event: int) -> bool:
    return event >= 0 and stream.allocations[event].name.removeprefix("aten.").partition(".")[0] in _PRODUCTS
