"""`fitune can`: whether a model can be fine-tuned on a card, and how."""

from dataclasses import replace

from planner.commands.options import (
    BatchSize,
    Data,
    Gpu,
    Json,
    LoraR,
    MaxLength,
    MethodChoice,
    Model,
    NumGpus,
    ObjectiveChoice,
    Settings,
)
from planner.commands.question import Card, Wishes, find_card, plan_command, refuse_several, request_for
from planner.common_cards import COMMON_CARDS, ask_common_cards, cheapest
from planner.plan import make_plan
from planner.report.document import print_json
from planner.report.plan_document import card_document, plan_document
from profiles.errors import EnvironmentFault


def can(
    model: Model,
    gpu: Gpu = None,
    num_gpus: NumGpus = 1,
    method: MethodChoice = "auto",
    objective: ObjectiveChoice = None,
    max_length: MaxLength = None,
    lora_r: LoraR = None,
    batch_size: BatchSize = None,
    data: Data = None,
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
    refuse_several(num_gpus)
    wishes = Wishes(method, max_length, lora_r, batch_size, settings or (), data, objective)
    card = find_card(gpu) if gpu else _own_card()
    if card is None:
        return _answer_for_common_cards(model, wishes, json)
    plan = make_plan(request_for(model, card, wishes))
    if json:
        print_json(plan_document(plan))
    else:
        from planner.report.answer import print_answer, print_next
        from planner.report.console import data_console

        console = data_console()
        print_answer(console, plan)
        print_next(console, plan_command(plan, wishes))
    return 1 if plan.verdict == "no" else 0


def _own_card() -> Card | None:
    try:
        return find_card("auto")
    except EnvironmentFault:
        return None


def _answer_for_common_cards(model: str, wishes: Wishes, json: bool) -> int:
    """One answer for each of the common cards, below that of the cheapest that does."""
    request = request_for(model, find_card(COMMON_CARDS[-1]), wishes)
    answers = ask_common_cards(request)
    plan = make_plan(replace(request, gpu=cheapest(answers).gpu), only_best=not json)
    if json:
        print_json(plan_document(plan) | {"cards": [card_document(answer) for answer in answers]})
    else:
        from planner.report.answer import print_next
        from planner.report.cards import print_cards
        from planner.report.console import data_console

        console = data_console()
        print_cards(console, plan, answers)
        print_next(console, plan_command(plan, wishes))
    return 1 if plan.verdict == "no" else 0
