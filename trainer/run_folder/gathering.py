"""The whole weights of a model whose processes hold a share each, gathered in the memory of the first one."""

import torch
from accelerate.utils.modeling import get_non_persistent_buffers
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from planner.config.run_config import RunConfig
from planner.units import format_bytes
from profiles.errors import EnvironmentFault
from profiles.main_memory import available_memory_bytes
from trainer.model.build import DTYPES
from trainer.processes.agreement import largest
from trainer.processes.ranks import rank

Weights = dict[str, torch.Tensor]


def whole_weights(trainer: Trainer, config: RunConfig) -> Weights | None:
    """What is saved of the model, by name, in the first process; none of it in the others.

    None where each process holds all weights, and with it the model itself. All processes take part. Raises
    EnvironmentFault if the first one has too little memory.
    """
    if config.parallel is None or not config.parallel.partitions_weights:
        return None
    shares = saved_shares(trainer.model, config)
    # On one card the weights have the dtype of the run; shares may be the float32 ones of the optimizer.
    dtype = DTYPES[config.dtype] if config.method == "full" else None
    _check_memory(shares, dtype, trainer.args.device)
    if config.parallel.strategy == "zero3":
        adapter_only = config.method != "full"
        return dict(
            trainer.deepspeed._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=adapter_only) or {}
        )
    return gather(shares, dtype)


def saved_shares(model: nn.Module, config: RunConfig) -> Weights:
    """This process's share of what is saved: all weights after full fine-tuning, else those that learned."""
    learned = {name: w for name, w in model.named_parameters() if w.requires_grad or config.method == "full"}
    recomputed = get_non_persistent_buffers(model, recurse=True, fqns=True)
    return learned | {name: buffer for name, buffer in model.named_buffers() if name not in recomputed}


def gather(shares: Weights, dtype: torch.dtype | None = None) -> Weights:
    """`shares` made whole, one tensor at a time, in host memory of the first process; empty in the others.

    Floating-point weights are cast to `dtype`, if one is given.
    """
    whole = {}
    for name, share in shares.items():
        # All processes have a part in each tensor, also those that keep none.
        tensor = share.full_tensor() if isinstance(share, DTensor) else share
        if rank() == 0:
            whole[name] = tensor.detach().to("cpu", _dtype_of(share, dtype))
    return whole


def _dtype_of(share: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and share.is_floating_point() else share.dtype


def _check_memory(shares: Weights, dtype: torch.dtype | None, device: torch.device) -> None:
    # DeepSpeed leaves nothing of a weight but its attributes.
    needed = sum(getattr(w, "ds_numel", w.numel()) * _dtype_of(w, dtype).itemsize for w in shares.values())
    free = available_memory_bytes()
    if largest(int(rank() == 0 and needed > free), device):
        raise EnvironmentFault(
            f"the final weights take {format_bytes(needed)} of host memory, but {format_bytes(free)} are free",
            hint="the last checkpoint is whole: free some memory, or take a machine with more, and go on with --resume",
        )
