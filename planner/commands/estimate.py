"""`fitune estimate`: the memory of one given configuration, phase by phase and part by part."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from planner.asking.question import names_file, names_run_file
from planner.asking.wishes import Wishes
from planner.commands.options import (
    Exact,
    Explain,
    FileFormat,
    FileModel,
    FixedFile,
    FixFile,
    Gpu,
    Json,
    LoraR,
    MaxLength,
    MethodChoice,
    Nodes,
    NumGpus,
    ObjectiveChoice,
    Plot,
    Settings,
    StrictKeys,
    Trainer,
)
from planner.commands.own_card import card_or_told
from planner.commands.plotting import check_plot, write_plot
from planner.commands.showing import Show
from planner.commands.terminal import TERMINAL
from planner.config.settings import knobs_in
from planner.explore.what_if import knob_effects
from planner.predict.prediction import OWN_TRAINER, Prediction
from planner.report.document import print_json
from planner.report.plan_document import prediction_document
from planner.verbs.answers import predicted
from profiles.errors import ConfigError


def estimate(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help="A model as in `fitune can`, a run file, or a file of another trainer (.yaml, .json).",
            show_default=False,
        ),
    ],
    gpu: Gpu = None,
    num_gpus: NumGpus = None,
    nodes: Nodes = None,
    method: MethodChoice = "auto",
    objective: ObjectiveChoice = None,
    max_length: MaxLength = None,
    lora_r: LoraR = None,
    settings: Settings = None,
    trainer: Trainer = OWN_TRAINER,
    exact: Exact = False,
    explain: Explain = False,
    plot: Plot = None,
    format: FileFormat = None,  # noqa: A002  # the option's name
    model: FileModel = None,
    fix: FixFile = False,
    output: FixedFile = None,
    strict: StrictKeys = False,
    json: Json = False,
) -> int:
    """Estimate the memory of one configuration.

    It has each phase of the step, each part, and what the driver will show.

    A MODEL is estimated as usual: LoRA, one row of 2048 tokens at a time; --set changes any knob.
    What the closed form does not describe, an architecture or a method of PEFT, is traced without being asked.
    A FILE of Axolotl, LLaMA-Factory, TRL, Unsloth or plain TrainingArguments is checked as that trainer would run it.
    Returns 1 if it does not fit the card.

    \b
    Examples:
      fitune estimate 7b --gpu a100-80gb --set method=full --explain
      fitune estimate run.yaml --set max_length=4096 --trainer trl
      fitune estimate axolotl.yml --gpu t4 --fix
    """
    wishes = Wishes(
        method=method,
        objective=objective,
        max_length=max_length,
        lora_r=lora_r,
        num_gpus=num_gpus,
        num_nodes=nodes,
        knobs=knobs_in(settings or ()),
    )
    show = Show(explain, plot, json)
    peer_options = {"--format": format, "--model": model, "--fix": fix, "-o": output, "--strict": strict}
    options = (format, model, fix, output, strict, trainer, exact)
    if names_file(subject) and (code := _peer_answered(subject, gpu, wishes, options, show)) is not None:
        return code
    if given := next((name for name, value in peer_options.items() if value), None):
        raise ConfigError(f"{given} is for a file of another trainer, and {subject} is none")
    return _estimate_own(subject, gpu, wishes, trainer, exact, show)


def _peer_answered(subject: str, gpu: str | None, wishes: Wishes, options: tuple[Any, ...], show: Show) -> int | None:
    # Only here: a model or a run file has no use for what reads the files of others.
    from planner.commands.peer_check import PeerOptions, peer_answered

    return peer_answered(subject, gpu, wishes, PeerOptions(*options), show)


def _estimate_own(subject: str, gpu: str | None, wishes: Wishes, trainer: str, exact: bool, show: Show) -> int:
    """Answer for a model or a run file."""
    check_plot(show.plot)
    card = gpu if names_run_file(subject) else card_or_told(gpu)
    prediction = predicted(subject, card, wishes, trainer, exact, TERMINAL)
    write_plot(prediction, show.plot)
    # What each knob would change is a question of many estimates: too many for a trace.
    effects = show.explain and prediction.by == "closed form"
    if show.json:
        document = prediction_document(prediction)
        print_json(document | ({"knobs": _effects(prediction)} if effects else {}))
    else:
        _print(prediction, explain=show.explain, effects=effects)
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
