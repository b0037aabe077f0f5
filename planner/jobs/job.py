"""A run as a job for machines that other people keep: what all job files say."""

import re
from dataclasses import dataclass
from pathlib import Path

from planner.config.run_config import RunConfig

PORT = 29500
"""Where the machines of a run meet: torch's usual port."""

END_OF_RUN_FILE = "END_OF_RUN_FILE"


@dataclass(frozen=True, slots=True)
class Job:
    """A run file, its text and a name of small letters, digits and dashes."""

    name: str
    config: RunConfig
    run_file: str

    @property
    def title(self) -> str:
        """What is trained on what, in a line."""
        config = self.config
        cards = f"{config.num_gpus} x {config.gpu or 'a process on the CPU'}"
        machines = f"{config.num_nodes} machines, each with {cards}" if config.num_nodes > 1 else cards
        how = f", {config.parallel.strategy}" if config.parallel else ""
        return f"{config.model}, {config.method}{how}, on {machines}"

    def here_document(self, path: str) -> str:
        """Lines of a shell script that write the run file to `path`."""
        return f"cat > {path} <<'{END_OF_RUN_FILE}'\n{self.run_file.rstrip()}\n{END_OF_RUN_FILE}\n"

    def launch(self, path: str, node_rank: str, master_addr: str, port: str = str(PORT)) -> str:
        """The command for each machine; a machine alone need not be told where to meet."""
        words = f"fitune launch {path} --auto-resume"
        if self.config.num_nodes == 1:
            return words
        return f'{words} --node-rank "{node_rank}" --master-addr "{master_addr}" --master-port "{port}"'


def job_of(config: RunConfig, run_file: str, path: Path) -> Job:
    """The job of a run file with the text `run_file`, named after the file at `path`."""
    words = re.findall(r"[a-z0-9]+", path.stem.lower())
    # Kubernetes adds the number of a machine; a host name has at most 63 letters.
    return Job("-".join(["fitune", *words])[:50].rstrip("-"), config, run_file)
