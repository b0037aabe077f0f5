"""Memory that no formula of the model gives: the batch itself, masks, rotary tables, cuBLAS."""

from planner.config.run_config import DTYPE_BYTES, Objective
from planner.memory.operators import INDEX
from planner.memory.tape import rounded
from planner.step.step_spec import StepSpec
from profiles.architecture import Architecture
from profiles.gpu import GpuProfile

INDEX_TENSORS: dict[Objective, int] = {"sft": 3, "dpo": 4, "ipo": 4, "kto": 8, "orpo": 8, "reward": 2}
"""Tensors of one index a token: token ids, attention mask and labels; masks of completions; with kto the same once more
for the divergence; with orpo both answers apart and together."""

CUBLAS_WORKSPACES = 2
"""The forward pass and autograd run on two threads, and each gets a workspace (aten `CUDABlas.cpp`)."""


def batch_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of token ids, labels and attention mask, and of buffers."""
    rows = INDEX_TENSORS[step.objective] * rounded(step.num_tokens * INDEX)
    return rows + sum(map(rounded, architecture.buffer_bytes))


def position_bytes(architecture: Architecture, step: StepSpec) -> int:
    """Bytes of masks and rotary tables, which go with the activations."""
    rotary = max(block.attention.rotary_dim for block in architecture.blocks)
    tables = 2 * rounded(step.seq_len * rotary * DTYPE_BYTES[step.base_dtype])
    return rounded(step.seq_len * INDEX) + tables + _mask_bytes(step)


def _mask_bytes(step: StepSpec) -> int:
    """Eager attention adds a mask of the compute dtype; fused kernels read one of booleans if the batch is masked."""
    square = step.seq_len * step.seq_len
    if step.attention == "eager":
        return rounded(step.micro_batch * square * DTYPE_BYTES[step.base_dtype])
    return rounded(step.micro_batch * square) if step.masked else 0


def workspace_bytes(gpu: GpuProfile | None) -> int:
    """Bytes of the cuBLAS workspaces; none on a CPU."""
    return CUBLAS_WORKSPACES * gpu.cublas_workspace_bytes if gpu else 0
