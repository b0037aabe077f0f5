"""The machines that a run is planned for, beside the kind of their cards."""

from dataclasses import dataclass

from profiles.gpu import GpuProfile
from profiles.instance import Instance


@dataclass(frozen=True, slots=True)
class Cluster:
    """How many cards each machine has, how many machines there are, and what is known of one; None where it is not.

    `instance` is the machine as a cloud calls it, `host_memory_bytes` the main memory that a run may take.
    """

    num_gpus: int = 1
    num_nodes: int = 1
    instance: Instance | None = None
    host_memory_bytes: int | None = None

    @property
    def world_size(self) -> int:
        """All cards."""
        return self.num_gpus * self.num_nodes

    @property
    def network_bytes_per_s(self) -> float | None:
        """Rate between machines, if it is known."""
        return self.instance.network_bytes_per_s if self.instance else None

    @property
    def knobs(self) -> dict[str, int]:
        """The same in a run file."""
        return {"num_gpus": self.num_gpus, "num_nodes": self.num_nodes}

    def usd_per_hour(self, gpu: GpuProfile | None) -> float | None:
        """What all of it costs: the machine's own price, or else the median price of so many cards."""
        if self.instance and self.instance.usd_per_hour and self.num_gpus == self.instance.num_gpus:
            return self.instance.usd_per_hour * self.num_nodes
        price = gpu.price if gpu else None
        return price.median_usd_per_hour * self.world_size if price else None


ONE_CARD = Cluster()
