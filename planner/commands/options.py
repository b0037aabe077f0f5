"""The arguments and options that several verbs share."""

from typing import Annotated

import typer

from profiles.errors import InputError


def _at_least_one(param: typer.CallbackParam, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise InputError(f"{param.opts[0]} is {value}, but it must be at least 1", hint="leave it out for the default")
    return value


def _complete_gpu(incomplete: str) -> list[str]:
    from profiles.gpu_catalog import all_gpus

    names = {alias for gpu in all_gpus() for alias in gpu.aliases or (gpu.name.lower(),)}
    return sorted(name for name in {"auto", *names} if name.startswith(incomplete.lower()))


def _complete_model(incomplete: str) -> list[str]:
    from profiles.model_catalog import all_models

    names = {name for model in all_models() for name in (model.hf_id, *model.aliases)}
    return sorted(name for name in names if name.lower().startswith(incomplete.lower()))


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A Hub id, a folder with a config.json, an alias (llama2-7b) or a size (7b).",
        autocompletion=_complete_model,
        show_default=False,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="GPU",
        help="A card (t4, a100-80gb), a size (16GB), or auto: this machine's, with what is free now.",
        autocompletion=_complete_gpu,
        show_default=False,
    ),
]
NumGpus = Annotated[int, typer.Option("--num-gpus", metavar="N", help="Cards of this kind.", callback=_at_least_one)]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", metavar="TOKENS", help="Tokens a row is cut to.", callback=_at_least_one),
]
LoraR = Annotated[
    int | None, typer.Option("--lora-r", metavar="R", help="Rank of the adapter.", callback=_at_least_one)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
