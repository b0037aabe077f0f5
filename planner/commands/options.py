"""The arguments and options that several verbs share; what they are is in `planner.asking.wishes`."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from planner.asking import wishes
from planner.asking.wishes import checked_number, words
from planner.config.run_config import Objective
from planner.search.request import RequestedMethod


def _within(parameter: object) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """Holds an option to the limits of its parameter."""

    def check(param: typer.CallbackParam, value: int | None) -> int | None:
        return checked_number(parameter, value, param.opts[0], "leave it out for the default")

    return check


def _complete_gpu(incomplete: str) -> list[str]:
    from profiles.gpu_catalog import all_gpus
    from profiles.instance import all_instances

    names = {alias for gpu in all_gpus() for alias in gpu.aliases or (gpu.name.lower(),)}
    names |= {machine.name for machine in all_instances()}
    return sorted(name for name in {"auto", "cpu", *names} if name.startswith(incomplete.lower()))


def complete_model(incomplete: str) -> list[str]:
    """Names of models of the catalog that begin with what is typed."""
    from profiles.model_catalog import all_models

    names = {name for model in all_models() for name in (model.hf_id, *model.aliases)}
    return sorted(name for name in names if name.lower().startswith(incomplete.lower()))


def _complete_trainer(incomplete: str) -> list[str]:
    from profiles.trainer import all_trainers

    return [name for name in all_trainers() if name.startswith(incomplete)]


def _complete_recipe(incomplete: str) -> list[str]:
    from profiles.recipe import all_recipes

    return [name for name in all_recipes() if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=words(wishes.ModelName),
        autocompletion=complete_model,
        show_default=False,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help=words(wishes.OptionalModelName),
        autocompletion=complete_model,
        show_default=False,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help=words(wishes.RecipeName),
        autocompletion=_complete_recipe,
        show_default=False,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help=words(wishes.GpuName),
        autocompletion=_complete_gpu,
        show_default=False,
    ),
]
NumGpus = Annotated[
    int | None,
    typer.Option(
        "--num-gpus",
        metavar="N",
        help=words(wishes.Cards),
        callback=_within(wishes.Cards),
        show_default=False,
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", metavar="N", help=words(wishes.Nodes), callback=_within(wishes.Nodes), show_default="1"),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", metavar="TOKENS", help=words(wishes.Length), callback=_within(wishes.Length)),
]
LoraR = Annotated[
    int | None, typer.Option("--lora-r", metavar="R", help=words(wishes.Rank), callback=_within(wishes.Rank))
]
Trainer = Annotated[
    str,
    typer.Option(
        "--trainer",
        metavar="NAME",
        help=words(wishes.TrainerName),
        autocompletion=_complete_trainer,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
MethodChoice = Annotated[
    RequestedMethod,
    typer.Option("--method", metavar="METHOD", help=words(wishes.MethodName)),
]
ObjectiveChoice = Annotated[
    Objective | None,
    typer.Option(
        "--objective",
        metavar="OBJECTIVE",
        help=words(wishes.ObjectiveName),
        show_default="sft",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="ROWS", help=words(wishes.BatchSize), callback=_within(wishes.BatchSize)),
]
Data = Annotated[Path | None, typer.Option("--data", metavar="FILE", help=words(wishes.DataFile))]
Rows = Annotated[
    int | None,
    typer.Option("--rows", metavar="N", help=words(wishes.Rows), callback=_within(wishes.Rows)),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KNOB=VALUE", help="Pin a knob of the run file, e.g. lora.r=8; repeatable."),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="PICTURE", help="Draw the memory of each phase against the card, as .svg or .png."),
]
FileFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="Whose file it is, if its keys do not tell: axolotl, llama-factory, trl, unsloth, transformers.",
        show_default=False,
    ),
]
FileModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model, for another trainer's file that names none, or one that is not known here.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
FixFile = Annotated[
    bool,
    typer.Option("--fix", help="Write the smallest change that fits to another trainer's file; a backup stays."),
]
FixedFile = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="With --fix: leave the file alone, write here.")
]
StrictKeys = Annotated[
    bool,
    typer.Option("--strict", help="Refuse another trainer's file with keys that are not in the estimate."),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help=words(wishes.Exactly),
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show each component's arithmetic, each key, and what each knob would change.")
]
