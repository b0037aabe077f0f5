"""FSDP2 among the processes of a CPU: the same sharding, gathering and checkpoints as among cards, over gloo."""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

_make_state = AcceleratorState.__init__


def allow_fsdp_on_cpu() -> None:
    """Let accelerate shard on a CPU.

    Torch's fully_shard works there, and so does all of accelerate behind its list of devices (accelerate 1.15,
    `state.py`), which leaves the CPU out: it would drop the plugin without a word and train with DDP.
    """
    AcceleratorState.__init__ = _make_sharded_state


def _make_sharded_state(
    self: AcceleratorState, *args: object, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **others: object
) -> None:
    _make_state(self, *args, fsdp_plugin=fsdp_plugin, **others)
    if fsdp_plugin is None or self.distributed_type != DistributedType.MULTI_CPU:
        return
    if self.mixed_precision != "no":
        fsdp_plugin.set_mixed_precision(self.mixed_precision)
    self.fsdp_plugin = fsdp_plugin
    self.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
