"""The cards that share a traced step: as many as are asked for, of which this process is the first and the only one.

Their process group is torch's fake one, whose collectives move nothing. Trainer, accelerate and engine take it for a
real one.
"""

import contextlib
import importlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from bitsandbytes.nn import modules as bitsandbytes_modules
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calibration.trace.recorder import Recorder
from planner.config.run_config import RunConfig
from trainer.processes.fsdp_on_cpu import allow_fsdp_on_cpu
from trainer.processes.layout import engine_variables

fsdp = importlib.import_module("torch.distributed.fsdp._fully_shard._fully_shard")
"""Torch hides the module behind a function that is called nearly the same."""

ddp: Any = importlib.import_module("torch.nn.parallel.distributed")


@contextlib.contextmanager
def fake_cards(config: RunConfig) -> Iterator[None]:
    """Be the first of the processes that share the run of `config`; for a run on one card nothing changes."""
    if config.parallel is None:
        yield
        return
    allow_fsdp_on_cpu()
    _forget_processes()
    dist.init_process_group("fake", rank=0, world_size=config.world_size, store=FakeStore())
    # It finds its cards by values, which fake tensors do not have, so it is made before any of them.
    mesh = init_device_mesh("cpu", (config.world_size,))
    try:
        with (
            patch.dict(os.environ, _variables(config)),
            patch.object(fsdp, "_init_default_mesh", lambda *_: mesh),
            patch.object(bitsandbytes_modules, "fix_4bit_weight_quant_state_from_module", _with_state),
            # Before it begins DDP compares weights and sends them: here all have the same, and nobody hears.
            patch.object(ddp, "_verify_param_shape_across_processes"),
            patch.object(ddp, "_sync_module_states"),
        ):
            yield
    finally:
        _forget_processes()
        dist.destroy_process_group()


def lay_out(trainer: Trainer, config: RunConfig) -> None:
    """Let FSDP2 share out the trainer's model before training begins: no card ever holds all of it.

    What accelerate does then with the optimizer goes by addresses, and is done here: it is made for the shares.
    """
    if config.parallel is None or config.parallel.strategy != "fsdp":
        return
    accelerator = trainer.accelerator
    accelerator.state.fsdp_plugin.cpu_ram_efficient_loading = False
    # There are no weights to hand out, and those of bitsandbytes have none of the values that a state dict asks for.
    with patch.object(trainer.model, "state_dict", dict):
        trainer.model = trainer.model_wrapped = fsdp2_prepare_model(accelerator, trainer.model)
    accelerator._prepare_fsdp2 = partial(_prepare_all_but_the_model, accelerator)


def _prepare_all_but_the_model(accelerator: Accelerator, *parts: object) -> tuple[object, ...]:
    return tuple(
        part if isinstance(part, torch.nn.Module) else accelerator._prepare_one(part, first_pass=True) for part in parts
    )


class FollowBuckets(TrainerCallback):  # type: ignore[misc]
    """Tells the recorder whose gradients the buckets of DDP hold, which DDP made when training began."""

    def __init__(self, trainer: Trainer, recorder: Recorder) -> None:
        self._trainer = trainer
        self._recorder = recorder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """DDP is there, and has done nothing yet."""
        network = self._trainer.model_wrapped
        if not isinstance(network, DistributedDataParallel):
            return
        names = {id(parameter): name for name, parameter in network.module.named_parameters()}
        network.register_comm_hook(names, self._reduce)
        network.reducer = _BucketsAsBuilt(network.reducer)

    def _reduce(self, names: dict[int, str], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """What an all-reduce of a bucket is for memory: its buffer, in place. The fake group's own has no result."""
        parts = {names[id(parameter)]: parameter.nbytes for parameter in bucket.parameters()}
        self._recorder.label_joined(bucket.buffer(), "bucket of gradients", parts, "gradient")
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done


class _BucketsAsBuilt:
    """DDP's reducer, whose buckets keep their order: by values of the other processes it would find a faster one."""

    def __init__(self, reducer: Any) -> None:  # noqa: ANN401 - torch's own has no public type
        self._reducer = reducer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._reducer, name)

    def _rebuild_buckets(self) -> bool:
        return False


def _with_state(layer: torch.nn.Module) -> None:
    """Give a gathered weight the constants of its blocks, which stay with the layer. It cannot become what bitsandbytes
    makes of a real one, which takes no memory either.
    """
    layer.weight.quant_state = layer.quant_state


def _forget_processes() -> None:
    """accelerate keeps for as long as a process lives what it once found."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _variables(config: RunConfig) -> dict[str, str]:
    """What torchrun would tell this process, and accelerate of the engine."""
    places = {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": config.world_size,
        "LOCAL_WORLD_SIZE": config.num_gpus,
        "MASTER_ADDR": "localhost",
        # Nobody is met there.
        "MASTER_PORT": 1,
        # Without it accelerate sets the number of threads.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()),
        # By itself accelerate numbers CPUs, and fake tensors would take one for two devices.
        "ACCELERATE_TORCH_DEVICE": "cpu",
    }
    return {name: str(value) for name, value in places.items()} | engine_variables(config)
