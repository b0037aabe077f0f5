"""`fitune can`: whether a model can be fine-tuned on a card, and how."""

from planner.asking.wishes import Wishes
from planner.commands.next_command import plan_command
from planner.commands.options import (
    BatchSize,
    Data,
    Gpu,
    Json,
    LoraR,
    MaxLength,
    MethodChoice,
    Model,
    Nodes,
    NumGpus,
    ObjectiveChoice,
    Rows,
    Settings,
)
from planner.commands.terminal import TERMINAL
from planner.config.settings import knobs_in
from planner.report.document import print_json
from planner.report.plan_document import plan_document
from planner.search.planning import Plan
from planner.verbs.answers import answer


def can(
    model: Model,
    gpu: Gpu = None,
    num_gpus: NumGpus = None,
    nodes: Nodes = None,
    method: MethodChoice = "auto",
    objective: ObjectiveChoice = None,
    max_length: MaxLength = None,
    lora_r: LoraR = None,
    batch_size: BatchSize = None,
    data: Data = None,
    rows: Rows = None,
    settings: Settings = None,
    json: Json = False,
) -> int:
    """Say whether MODEL can be fine-tuned on GPU, and how.

    The answer has the settings, the speed, and where the memory goes.

    Without --gpu the answer is for this machine's card; without a card, for the common ones.
    Returns 0 if it fits, 1 if it does not.

    \b
    Examples:
      fitune can 7b --gpu t4
      fitune can mistralai/Mistral-7B-v0.1 --gpu 24GB --method lora --max-length 4096
    """
    wishes = Wishes(
        method=method,
        objective=objective,
        max_length=max_length,
        lora_r=lora_r,
        batch_size=batch_size,
        data=data,
        rows=rows,
        num_gpus=num_gpus,
        num_nodes=nodes,
        knobs=knobs_in(settings or ()),
    )
    plan = answer(model, gpu, wishes, TERMINAL)
    if json:
        print_json(plan_document(plan))
    else:
        _print(plan, plan_command(plan, wishes))
    return 1 if plan.verdict == "no" else 0


def _print(plan: Plan, next_command: str | None) -> None:
    from planner.report.answer import print_answer, print_next
    from planner.report.console import data_console

    console = data_console()
    if plan.cards:
        from planner.report.cards import print_cards

        print_cards(console, plan)
    else:
        print_answer(console, plan)
    print_next(console, next_command)
