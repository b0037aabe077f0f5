"""From the options of a verb to a `Request`: which model, which card, which knobs are pinned."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.commands.knobs import check_knobs, knobs_in
from planner.data_lengths import DataLengths
from planner.plan import Plan
from planner.request import EFFECTIVE_BATCH_SIZE, Request, RequestedMethod, loadable_name
from planner.run_config import Objective
from profiles.errors import ConfigError, DataError, EnvironmentFault, InputError
from profiles.gpu import GpuProfile
from profiles.main_memory import available_memory_bytes

if TYPE_CHECKING:
    from profiles.recipe import Recipe

RUN_FILE_SUFFIXES = (".yaml", ".yml")

ANSWERED_ELSEWHERE = {"model": "MODEL", "gpu": "--gpu", "version": "no option"}


@dataclass(frozen=True, slots=True)
class Card:
    """What is planned for: a card, or the CPU (`gpu` None), and the memory that is free on it now, if it is here."""

    gpu: GpuProfile | None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the options of a verb say about the run."""

    method: RequestedMethod = "auto"
    max_length: int | None = None
    lora_r: int | None = None
    batch_size: int | None = None
    settings: Sequence[str] = ()
    data: Path | None = None
    objective: Objective | None = None
    recipe: str | None = None


def following(recipe: "Recipe", own: Wishes) -> Wishes:
    """The wishes of `recipe`, with the user's `own` in place of them where there are any."""
    return replace(
        own,
        method=recipe.method if own.method == "auto" else own.method,
        max_length=own.max_length or recipe.max_length,
        batch_size=own.batch_size or recipe.batch_size,
        settings=(*recipe.settings, *own.settings),
        objective=own.objective or recipe.objective,
    )


def names_run_file(subject: str) -> bool:
    """Whether an argument that may be a model or a run file is the latter."""
    return subject.lower().endswith(RUN_FILE_SUFFIXES)


def find_card(name: str) -> Card:
    """The card of this name; `auto` is the one of this machine, `cpu` its processor.

    Raises UnknownGpuError, and EnvironmentFault for `auto` without a driver or card.
    """
    if name.lower() == "cpu":
        return Card(None, available_memory_bytes())
    if name.lower() == "auto":
        from profiles.detect import detect_gpu

        found = detect_gpu()
        return Card(found.profile, found.free_bytes)
    from profiles.gpu_catalog import find_gpu

    return Card(find_gpu(name))


def card_or_cpu(name: str | None) -> Card:
    """The card of this name; without a name this machine's, or its CPU if it has none, with a word on stderr."""
    if name is not None:
        return find_card(name)
    try:
        return find_card("auto")
    except EnvironmentFault as fault:
        sys.stderr.write(f"{fault.message}; the answer is for its CPU\n")
        return find_card("cpu")


def refuse_several(num_gpus: int) -> None:
    """Raise InputError for more than one card, which the memory model does not cover."""
    if num_gpus > 1:
        raise InputError(
            f"--num-gpus is {num_gpus}, but only runs on one card are modeled so far",
            hint="leave it out: with plain data parallelism each card needs at least what one card needs alone",
        )


def request_for(model_name: str, card: Card, wishes: Wishes) -> Request:
    """The question to the planner. Raises UnknownModelError, ConfigError or DataError."""
    from profiles.model_catalog import resolve_model

    knobs = pinned_knobs(wishes)
    method = knobs.pop("method", wishes.method)
    if method == "full" and "lora" in knobs:
        raise ConfigError("full fine-tuning has no adapter, so lora.r has no effect", hint="leave it out, or use lora")
    model = resolve_model(model_name).profile
    return Request(
        model=model,
        gpu=card.gpu,
        method=method,
        effective_batch_size=wishes.batch_size or EFFECTIVE_BATCH_SIZE,
        knobs=knobs,
        lengths=_lengths(wishes.data, loadable_name(model, model_name)) if wishes.data else None,
        free_bytes=card.free_bytes,
        model_name=model_name,
    )


def pinned_knobs(wishes: Wishes) -> dict[str, Any]:
    """The knobs that the options name, nested as in a run file. Raises ConfigError for what is wrong by itself."""
    knobs = knobs_in(wishes.settings)
    for name in ANSWERED_ELSEWHERE.keys() & knobs.keys():
        raise ConfigError(f"--set cannot change {name}", hint=f"it comes from {ANSWERED_ELSEWHERE[name]}")
    if wishes.max_length is not None:
        knobs["max_length"] = wishes.max_length
    if wishes.lora_r is not None:
        knobs["lora"] = {**_section(knobs, "lora"), "r": wishes.lora_r}
    if wishes.objective is not None:
        knobs["objective"] = wishes.objective
    if wishes.data is not None:
        knobs["data"] = {**_section(knobs, "data"), "path": str(wishes.data)}
    check_knobs(knobs)
    return knobs


def plan_command(plan: Plan, wishes: Wishes) -> str | None:
    """What to type to get the run file of `plan`; None if there is none."""
    if plan.config is None:
        return None
    gpu = plan.request.gpu.name if plan.request.gpu else "cpu"
    argv = ["fitune", "plan", plan.request.model_name or plan.config.model, "--gpu", gpu]
    options = {
        "--recipe": wishes.recipe,
        "--method": None if wishes.method == "auto" else wishes.method,
        "--objective": wishes.objective,
        "--max-length": wishes.max_length,
        "--lora-r": wishes.lora_r,
        "--batch-size": wishes.batch_size,
    }
    argv += [part for name, value in options.items() if value for part in (name, str(value))]
    argv += [part for setting in wishes.settings for part in ("--set", setting)]
    argv += ["--data", str(wishes.data or "DATA.jsonl"), "-o", "run.yaml"]
    return shlex.join(argv)


def _lengths(data: Path, model: str) -> DataLengths:
    from planner.data_inspection import guess_note, inspect_data, lengths_of
    from planner.report.progress import progress_bar

    with progress_bar(f"reading {data.name}") as on_progress:
        report = inspect_data(data, model, on_progress=on_progress)
    if report.rejected:
        first = report.rejected[0]
        raise DataError(
            f"{data}, {first.place}: {first.what}",
            hint=f"{len(report.rejected):,} of {report.num_rows:,} rows cannot be trained on; "
            f"`fitune data {data}` lists them",
        )
    if note := guess_note(report):
        sys.stderr.write(f"note: {note}\n")
    return lengths_of(report)


def _section(knobs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = knobs.get(name, {})
    return section if isinstance(section, Mapping) else {}
