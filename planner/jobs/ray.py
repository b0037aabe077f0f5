"""A driver for Ray, which finds machines in a cluster of its own."""

from planner.jobs.job import PORT, Job

CPUS_PER_CARD = 4
"""Cores for each process: one computes, and some read and tokenize data."""

TRIES = 10
"""How often the job starts again when a machine is lost."""


IMPORTS = """
import subprocess
import sys
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

"""

PROGRAM = '''

@ray.remote(max_retries=0)
def address():
    return get_node_ip_address()


@ray.remote(max_retries=0)
def launch(rank, address):
    Path(RUN_FILE).write_text(RUN, encoding="utf-8")
    place = ["--node-rank", str(rank), "--master-addr", address, "--master-port", str(PORT)] if NUM_MACHINES > 1 else []
    return subprocess.run(["fitune", "launch", RUN_FILE, "--auto-resume", *place]).returncode


def train():
    """Start fitune on each machine, and end all when one ends without success; the exit code."""
    machines = placement_group([MACHINE] * NUM_MACHINES, strategy="STRICT_SPREAD")
    ray.get(machines.ready())

    def on(task, rank, **resources):
        strategy = PlacementGroupSchedulingStrategy(machines, placement_group_bundle_index=rank)
        return task.options(scheduling_strategy=strategy, **resources)

    try:
        first = ray.get(on(address, 0, num_cpus=1).remote())
        all_of_it = {"num_cpus": MACHINE["CPU"], "num_gpus": MACHINE.get("GPU", 0)}
        running = [on(launch, rank, **all_of_it).remote(rank, first) for rank in range(NUM_MACHINES)]
        code = 0
        while running and code == 0:
            (done,), running = ray.wait(running)
            code = ray.get(done)
        return code
    finally:
        # Ends what still runs there.
        remove_placement_group(machines)


if __name__ == "__main__":
    ray.init()
    for attempt in range(TRIES):
        try:
            sys.exit(train())
        except RayError as error:
            print(f"a machine was lost ({type(error).__name__}); start {attempt + 2} of {TRIES}", file=sys.stderr)
    sys.exit(1)
'''


def ray_driver(job: Job) -> str:
    """The Python program for `ray job submit`. It starts fitune once on each machine, and anew when one is lost."""
    config = job.config
    machine = {"CPU": CPUS_PER_CARD * config.num_gpus} | ({"GPU": config.num_gpus} if config.gpu else {})
    head = f'''"""{job.title}

Start with: ray job submit --working-dir . -- python THIS_FILE
Each machine of the cluster has fitune[train] where it has Ray, or gets it with
  --runtime-env-json \'{{"pip": ["fitune[train]"]}}\'
Data, models and output_dir of the run file are on a disk that all machines share, by absolute paths.
"""
'''
    settings = f"""NUM_MACHINES = {config.num_nodes}
MACHINE = {machine!r}
PORT = {PORT}
TRIES = {TRIES}
RUN_FILE = "{job.name}.yaml"
RUN = {_text(job.run_file)}
"""
    return f"{head}{IMPORTS}{settings}{PROGRAM}"


def _text(text: str) -> str:
    """A literal of Python for `text`, on lines of its own if that can be."""
    return repr(text) if '"""' in text else f'r"""\n{text.rstrip()}\n"""'
