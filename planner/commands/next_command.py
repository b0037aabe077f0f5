"""What to type next: the command that repeats a question and writes its answer as a run file."""

import shlex

from planner.asking.wishes import Wishes
from planner.config.settings import settings_of
from planner.search.planning import Plan


def plan_command(plan: Plan, wishes: Wishes) -> str | None:
    """What to type to get the run file of `plan`; None if there is none."""
    if plan.config is None:
        return None
    machine = plan.request.cluster.instance
    gpu = machine.name if machine else plan.request.gpu.name if plan.request.gpu else "cpu"
    argv = ["fitune", "plan", plan.request.model_name or plan.config.model, "--gpu", gpu]
    options = {
        "--num-gpus": wishes.num_gpus,
        "--nodes": wishes.num_nodes,
        "--recipe": wishes.recipe,
        "--method": None if wishes.method == "auto" else wishes.method,
        "--objective": wishes.objective,
        "--max-length": wishes.max_length,
        "--lora-r": wishes.lora_r,
        "--batch-size": wishes.batch_size,
    }
    argv += [part for name, value in options.items() if value for part in (name, str(value))]
    argv += [part for setting in settings_of(wishes.knobs) for part in ("--set", setting)]
    argv += ["--data", str(wishes.data or "DATA.jsonl"), "-o", "run.yaml"]
    return shlex.join(argv)
