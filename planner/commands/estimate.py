"""`fitune estimate`: the memory of one given configuration, phase by phase and part by part."""

from dataclasses import asdict
from typing import Annotated

import typer

from planner.commands.options import Gpu, Json, LoraR, MaxLength, MethodChoice, ObjectiveChoice, Plot, Settings, Trainer
from planner.commands.own_card import card_or_told
from planner.commands.plotting import check_plot, write_plot
from planner.commands.terminal import TERMINAL
from planner.prediction import OWN_TRAINER, Prediction
from planner.question import Wishes, names_run_file
from planner.report.document import print_json
from planner.report.plan_document import prediction_document
from planner.settings import knobs_in
from planner.verbs import predicted
from planner.what_if import knob_effects


def estimate(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN_FILE",
            help="A model as in `fitune can`, or a run file (.yaml).",
            show_default=False,
        ),
    ],
    gpu: Gpu = None,
    method: MethodChoice = "auto",
    objective: ObjectiveChoice = None,
    max_length: MaxLength = None,
    lora_r: LoraR = None,
    settings: Settings = None,
    trainer: Trainer = OWN_TRAINER,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="Trace the trainer's own step on fake tensors, operator by operator: about ten seconds, "
            "and needs the `train` extra, but no GPU and no weights.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each component's arithmetic and what each knob would change.")
    ] = False,
    plot: Plot = None,
    json: Json = False,
) -> int:
    """Estimate the memory of one configuration.

    It has each phase of the step, each part, and what the driver will show.

    A MODEL is estimated as usual: LoRA, one row of 2048 tokens at a time; --set changes any knob.
    What the closed form does not describe, an architecture or a method of PEFT, is traced without being asked.
    Returns 1 if it does not fit the card.

    \b
    Examples:
      fitune estimate 7b --gpu a100-80gb --set method=full --explain
      fitune estimate run.yaml --set max_length=4096 --trainer trl
      fitune estimate ./my-model --gpu 24GB --exact --explain
    """
    wishes = Wishes(method, max_length, lora_r, knobs=knobs_in(settings or ()), objective=objective)
    check_plot(plot)
    card = gpu if names_run_file(subject) else card_or_told(gpu)
    prediction = predicted(subject, card, wishes, trainer, exact, TERMINAL)
    write_plot(prediction, plot)
    # What each knob would change is a question of many estimates: too many for a trace.
    effects = explain and prediction.by == "closed form"
    if json:
        document = prediction_document(prediction)
        print_json(document | ({"knobs": _effects(prediction)} if effects else {}))
    else:
        _print(prediction, explain=explain, effects=effects)
    return 1 if prediction.verdict == "no" else 0


def _print(prediction: Prediction, *, explain: bool, effects: bool) -> None:
    from planner.report.breakdown import print_breakdown, print_effects
    from planner.report.console import data_console

    console = data_console()
    print_breakdown(console, prediction, explain=explain)
    if effects:
        print_effects(console, knob_effects(prediction))


def _effects(prediction: Prediction) -> list[dict[str, object]]:
    return [asdict(effect) for effect in knob_effects(prediction)]
