"""The arguments and options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

from planner.config.run_config import Objective
from planner.search.request import RequestedMethod
from profiles.errors import InputError


def _at_least_one(param: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"{param.opts[0]} is {value}, but it must be at least 1", hint="leave it out for the default")
    return value


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
        help="A Hub id, a folder with a config.json, an alias (llama2-7b) or a size (7b).",
        autocompletion=complete_model,
        show_default=False,
    ),
]
OptionalModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="As in `fitune can`; with --recipe, in place of the recipe's.",
        autocompletion=complete_model,
        show_default=False,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        help="Begin with published settings (`fitune recipes`); other options change them.",
        autocompletion=_complete_recipe,
        show_default=False,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help="A card (t4, a100-80gb), a size (16GB), a machine (p4d.24xlarge), auto (this machine's, with what is free "
        "now) or cpu; for can also any: the common cards compared.",
        autocompletion=_complete_gpu,
        show_default=False,
    ),
]
NumGpus = Annotated[
    int | None,
    typer.Option(
        "--num-gpus",
        metavar="N",
        help="Cards in each machine; one, or all that a machine has.",
        callback=_at_least_one,
        show_default=False,
    ),
]
Nodes = Annotated[
    int | None,
    typer.Option("--nodes", metavar="N", help="Machines.", callback=_at_least_one, show_default="1"),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", metavar="TOKENS", help="Tokens a row is cut to.", callback=_at_least_one),
]
LoraR = Annotated[
    int | None, typer.Option("--lora-r", metavar="R", help="Rank of the adapter.", callback=_at_least_one)
]
Trainer = Annotated[
    str,
    typer.Option(
        "--trainer",
        metavar="NAME",
        help="Whose training step: fitune, trl, transformers, axolotl, ...",
        autocompletion=_complete_trainer,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
MethodChoice = Annotated[
    RequestedMethod,
    typer.Option(
        "--method", metavar="METHOD", help="full, lora, qlora, peft, or auto: LoRA on the least lossy base that fits."
    ),
]
ObjectiveChoice = Annotated[
    Objective | None,
    typer.Option(
        "--objective",
        metavar="OBJECTIVE",
        help="What is learned: sft answers, dpo, ipo and orpo preferences, kto judged answers, reward a score.",
        show_default="sft",
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="ROWS", help="Examples of one optimizer step.", callback=_at_least_one),
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="FILE", help="Training data, for the lengths of its rows.")
]
Rows = Annotated[
    int | None,
    typer.Option(
        "--rows", metavar="N", help="Rows of data, for time and cost before there is a file.", callback=_at_least_one
    ),
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
        help="Trace the trainer's own step on fake tensors, operator by operator: about ten seconds, "
        "and needs the `train` extra, but no GPU and no weights.",
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Show each component's arithmetic, each key, and what each knob would change.")
]
