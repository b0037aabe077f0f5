"""What a run can be written for."""

from collections.abc import Callable
from typing import Literal

from planner.jobs.job import Job
from planner.jobs.kubernetes import kubernetes_manifest
from planner.jobs.ray import ray_driver
from planner.jobs.skypilot import skypilot_task
from planner.jobs.slurm import slurm_script
from planner.jobs.torchrun import torchrun_script

Cluster = Literal["slurm", "skypilot", "kubernetes", "ray", "torchrun"]

TARGETS: dict[Cluster, Callable[[Job], str]] = {
    "slurm": slurm_script,
    "skypilot": skypilot_task,
    "kubernetes": kubernetes_manifest,
    "ray": ray_driver,
    "torchrun": torchrun_script,
}
"""What writes the job file of each target. Raises UnsupportedError for a card that the target has no name for."""
