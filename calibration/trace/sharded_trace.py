"""Traces one card's part of a step that several share, on one CPU and for any number of cards.

The process group is torch's fake one, whose collectives move nothing, and so are the tensors, but for DDP. The network
is that of the trainer, its layout that of accelerate; the loop around it is plain.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedConfig

from calibration.trace.fake_model import meta_model, to_fake, wrapped
from calibration.trace.step_config import in_bfloat16, run_config
from planner.config.run_config import RunConfig
from planner.step.step_spec import Sharding, StepSpec
from profiles.errors import UnsupportedError
from trainer.loop.live_bytes import LiveBytes, Phase

STEPS = 2
"""The states of the optimizer are there from the second on."""

TRACED = ("ddp", "fsdp")
AXES = ("dp_shard",)
MIXED = {None: "no", "bfloat16": "bf16", "float16": "fp16"}


def sharded_peaks(architecture: PreTrainedConfig, step: StepSpec) -> dict[Phase, int]:
    """The most live bytes of each phase on one of the cards that share `step`, whose device is the CPU.

    Raises UnsupportedError for what is not traced: other engines, offload, split products and rows.
    """
    sharding = step.sharding
    if sharding is None or sharding.engine not in TRACED or sharding.offload != "none":
        raise UnsupportedError("only DDP and FSDP2 without offload are traced", hint="the closed form answers for all")
    if sharding.tensor_parallel_size * sharding.context_parallel_size > 1:
        raise UnsupportedError("split products and rows are not traced", hint="the closed form answers for them")
    step = in_bfloat16(step)
    config = run_config(replace(step, sharding=None))
    with _fake_group(sharding) as cards, warnings.catch_warnings(action="ignore"):
        network = _network(architecture, config)
        # DDP sorts its buckets by what the processes tell each other, so it needs tensors with values.
        values = FakeTensorMode(allow_non_fake_inputs=True) if sharding.engine == "fsdp" else contextlib.nullcontext()
        with values:
            to_fake(network, step)
            return _peaks(_laid_out(network, step, sharding, cards), step)


@contextlib.contextmanager
def _fake_group(sharding: Sharding) -> Iterator[DeviceMesh]:
    """A process group of so many cards, of which this process is the first and the only one."""
    dist.init_process_group("fake", rank=0, world_size=sharding.world_size, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (sharding.world_size,))
    finally:
        dist.destroy_process_group()


def _network(architecture: PreTrainedConfig, config: RunConfig) -> torch.nn.Module:
    """The network as the trainer builds it, without weights."""
    with tempfile.TemporaryDirectory() as folder:
        model, _ = meta_model(config.model_copy(update={"output_dir": folder}), architecture, whole=True)
        network = wrapped(model, config)
    network.train()
    if config.gradient_checkpointing:
        if config.method != "full":
            network.enable_input_require_grads()
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return network


def _laid_out(network: torch.nn.Module, step: StepSpec, sharding: Sharding, cards: DeviceMesh) -> torch.nn.Module:
    """`network` as accelerate lays it out among the cards."""
    if sharding.engine == "ddp":
        # What it compares with the others are values, and the others send none.
        with patch("torch.nn.parallel.distributed._verify_param_shape_across_processes"):
            copy = DistributedDataParallel(network)
        copy.register_comm_hook(None, _summed_in_place)
        return copy
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=sharding.reshard_after_forward,
        cpu_ram_efficient_loading=False,
    )
    precision = MIXED[step.autocast]
    if precision != "no":
        plugin.set_mixed_precision(precision)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision=precision,
        device=torch.device("cpu"),
        is_main_process=False,
        torch_device_mesh={AXES: cards},
        parallelism_config=SimpleNamespace(fsdp_dim_names=AXES),
    )
    laid_out: torch.nn.Module = fsdp2_prepare_model(accelerator, network)
    return laid_out


def _summed_in_place(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """What an all-reduce of a bucket is for memory; the fake group's own has no result."""
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _peaks(network: torch.nn.Module, step: StepSpec) -> dict[Phase, int]:
    learns = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, foreach=False, fused=step.optimizer == "adamw_torch_fused")
    tokens = torch.zeros((step.micro_batch, step.seq_len), dtype=torch.long)
    live = LiveBytes()
    live.watch([*network.parameters(), *network.buffers()], "load")
    with live:
        for _ in range(STEPS):
            live.phase = "forward"
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step.autocast is not None):
                loss = network(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            live.phase = "step"
            optimizer.step()
            optimizer.zero_grad()
    return live.peaks
