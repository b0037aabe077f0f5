"""Where the machines of a run meet, and which of them this one is. Needs no torch."""

from dataclasses import dataclass

from planner.config.run_config import RunConfig
from planner.jobs.job import PORT
from profiles.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Meeting:
    """The machine of the first process, where the others ask for it, and this machine's number, from 0."""

    node_rank: int = 0
    address: str = "127.0.0.1"
    port: int = PORT

    def again(self, restarts: int) -> "Meeting":
        """Where all meet after so many restarts: on another port, since the last one may still be held."""
        return Meeting(self.node_rank, self.address, self.port + restarts)


def find_meeting(
    config: RunConfig, node_rank: int | None, master_addr: str | None, master_port: int | None
) -> Meeting | None:
    """Where the machines of `config` meet; None for one machine. Raises ConfigError for what is missing or no use."""
    given = node_rank is not None or master_addr is not None or master_port is not None
    if config.num_nodes == 1:
        if given:
            raise ConfigError(
                "--node-rank, --master-addr and --master-port are for several machines, but num_nodes is 1",
                hint="leave them out, or set num_nodes in the run file",
            )
        return None
    if node_rank is None or master_addr is None:
        raise ConfigError(
            f"num_nodes is {config.num_nodes}, but this machine was not told its number and where to meet",
            hint="on each machine, `fitune launch RUN_FILE --node-rank N --master-addr HOST` with N from 0, and the "
            "address of machine 0; `--print slurm` and others write that for a cluster",
        )
    if not 0 <= node_rank < config.num_nodes:
        raise ConfigError(
            f"--node-rank is {node_rank}, but num_nodes is {config.num_nodes}",
            hint=f"use 0 to {config.num_nodes - 1}, another one on each machine",
        )
    return Meeting(node_rank, master_addr, master_port or PORT)
