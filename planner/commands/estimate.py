"""`fitune estimate`: the memory of one given configuration, phase by phase and part by part."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from planner.commands.knobs import with_knobs
from planner.commands.options import Gpu, Json, LoraR, MaxLength, MethodChoice, ObjectiveChoice, Settings, Trainer
from planner.commands.question import Wishes, card_or_cpu, find_card, names_run_file, pinned_knobs, request_for
from planner.prediction import OWN_TRAINER, Prediction, Target, predict, predict_traced, usual_config
from planner.report.document import print_json
from planner.report.plan_document import prediction_document
from planner.run_config import RunConfig
from planner.what_if import knob_effects
from profiles.errors import ConfigError, UnsupportedError
from profiles.model_catalog import resolve_model


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
    wishes = Wishes(method, max_length, lora_r, settings=settings or (), objective=objective)
    try:
        config, target = _question(subject, gpu, wishes, trainer)
    except UnsupportedError as error:
        from planner.commands.undescribed import undescribed_question

        config, target = undescribed_question(subject, gpu, wishes, trainer, error)
    prediction = _predict(config, target, exact)
    # What each knob would change is a question of many estimates: too many for a trace.
    effects = explain and prediction.by == "closed form"
    if json:
        document = prediction_document(prediction, target)
        print_json(document | ({"knobs": _effects(prediction, target)} if effects else {}))
    else:
        _print(prediction, target, explain=explain, effects=effects)
    return 1 if prediction.verdict == "no" else 0


def _print(prediction: Prediction, target: Target, *, explain: bool, effects: bool) -> None:
    from planner.report.breakdown import print_breakdown, print_effects
    from planner.report.console import data_console

    console = data_console()
    print_breakdown(console, prediction, target, explain=explain)
    if effects:
        print_effects(console, knob_effects(prediction, target))


def _predict(config: RunConfig, target: Target, exact: bool) -> Prediction:
    """By the closed form, or by a trace if that is asked for or the only way."""
    if not exact and target.model is not None:
        try:
            return predict(config, target)
        except UnsupportedError as error:
            sys.stderr.write(f"note: {error.message}; tracing the step instead\n")
    from planner.report.progress import busy

    with busy("tracing the step on fake tensors"):
        return predict_traced(config, target)


def _question(subject: str, gpu: str | None, wishes: Wishes, trainer: str) -> tuple[RunConfig, Target]:
    """The configuration to estimate, and where: of a run file, or the usual one of a model."""
    if not names_run_file(subject):
        request = request_for(subject, card_or_cpu(gpu), wishes)
        return usual_config(request), Target(request.model, request.gpu, request.free_bytes, trainer)
    from planner.run_file import read_run_file

    if wishes.method != "auto":
        raise ConfigError("--method is for a MODEL; a run file has its own", hint="use --set for what goes with it")
    config = with_knobs(read_run_file(Path(subject)), pinned_knobs(wishes))
    card = find_card(gpu or config.gpu or "cpu")
    return config, Target(resolve_model(config.model).profile, card.gpu, card.free_bytes, trainer)


def _effects(prediction: Prediction, target: Target) -> list[dict[str, object]]:
    return [asdict(effect) for effect in knob_effects(prediction, target)]
