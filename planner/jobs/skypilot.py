"""A task for SkyPilot, which finds machines in clouds."""

from textwrap import indent

from planner.jobs.job import Job
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.skypilot import accelerator_names


def skypilot_task(job: Job) -> str:
    """The YAML for `sky launch` or `sky jobs launch`. Raises UnsupportedError for a card without a name there."""
    config = job.config
    if config.gpu is None:
        resources = f"  cpus: {2 * config.num_gpus}+\n"
    else:
        card, names = find_gpu(config.gpu).name, accelerator_names()
        if card not in names:
            raise UnsupportedError(
                f"SkyPilot's name of {card} is not known", hint=f"it is known of {', '.join(sorted(names))}"
            )
        resources = f"  accelerators: {names[card]}:{config.num_gpus}\n"
    launch = job.launch("run.yaml", "$SKYPILOT_NODE_RANK", "$master")
    run = f"""source ~/fitune/bin/activate
{job.here_document("run.yaml")}
# The first address is that of machine 0.
master=$(echo "$SKYPILOT_NODE_IPS" | sed -n 1p)
exec {launch}
"""
    shared = (
        "# output_dir has to be on a disk that all machines share: a volume, or a file system of the cloud.\n"
        if config.num_nodes > 1
        else "# To survive a machine that is taken away, put output_dir on a volume or a mounted bucket.\n"
    )
    return f"""# {job.title}
# Start with: sky jobs launch THIS_FILE, which goes on after a loss of machines, or sky launch THIS_FILE
{shared}name: {job.name}

num_nodes: {config.num_nodes}

resources:
{resources}
# This folder, with data and models that the run file names by relative paths.
workdir: .

setup: |
  python3 -m venv ~/fitune
  ~/fitune/bin/pip install 'fitune[train]'

run: |
{indent(run, "  ")}"""
