"""From what a user asks to a `Request`: which model, which card, which knobs are pinned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.data_lengths import DataLengths
from planner.data_report import DataReport
from planner.experience import NEWEST, NO_EXPERIENCE, Experience
from planner.prediction import Tracing, untold
from planner.request import EFFECTIVE_BATCH_SIZE, Request, RequestedMethod, loadable_name
from planner.run_config import Objective
from planner.settings import check_knobs, knobs_in, merged
from profiles.errors import ConfigError, DataError, EnvironmentFault, InputError
from profiles.gpu import GpuProfile
from profiles.main_memory import available_memory_bytes
from profiles.model_catalog import ResolvedModel, resolve_model

if TYPE_CHECKING:
    from profiles.recipe import Recipe

Inspect = Callable[[Path, str], DataReport]
"""Reads a data file as a model does, given its Hub id or folder."""

Resolve = Callable[[str], ResolvedModel]
"""Finds a model by what the user calls it."""

RUN_FILE_SUFFIXES = (".yaml", ".yml")

ANSWERED_ELSEWHERE = {"model": "MODEL", "gpu": "--gpu", "version": "no option"}


@dataclass(frozen=True, slots=True)
class Card:
    """What is planned for: a card, or the CPU (`gpu` None), and the memory that is free on it now, if it is here."""

    gpu: GpuProfile | None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user says about the run; `knobs` are named and nested as in a run file, `rows` those of the data."""

    method: RequestedMethod = "auto"
    max_length: int | None = None
    lora_r: int | None = None
    batch_size: int | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    objective: Objective | None = None
    recipe: str | None = None
    rows: int | None = None


def own_experience() -> Experience:
    """What the runs in this machine's store have taught; where it cannot be read, nothing but that."""
    from planner.run_store import StoreError, recall, store_path

    path = store_path()
    try:
        return Experience(recall(path, newest=NEWEST)) if path else NO_EXPERIENCE
    except StoreError as error:
        return Experience(fault=f"{error.message}; the answer does without earlier runs")


def _inspect(data: Path, model: str) -> DataReport:
    # Starting processes takes time to import, and most questions come without data.
    from planner.data_inspection import inspect_data

    return inspect_data(data, model)


@dataclass(frozen=True, slots=True)
class Access:
    """How an answer gets at what is outside of it; a server gives less than a command of the user.

    Without `files` no run file and no data is read, and without `tracing` nothing is traced.
    """

    resolve: Resolve = resolve_model
    files: bool = True
    inspect: Inspect = _inspect
    experience: Callable[[], Experience] = own_experience
    tracing: Tracing | None = untold


FULL_ACCESS = Access()


def following(recipe: "Recipe", own: Wishes) -> Wishes:
    """The wishes of `recipe`, with the user's `own` in place of them where there are any."""
    return replace(
        own,
        method=recipe.method if own.method == "auto" else own.method,
        max_length=own.max_length or recipe.max_length,
        batch_size=own.batch_size or recipe.batch_size,
        knobs=merged(knobs_in(recipe.settings), own.knobs),
        objective=own.objective or recipe.objective,
    )


def names_file(subject: str) -> bool:
    """Whether an argument that may be a model is a run file or the file of another trainer."""
    return names_run_file(subject) or subject.lower().endswith(".json")


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
    """The card of this name; without a name this machine's, or its CPU if it has none."""
    return find_card(name) if name is not None else own_card() or find_card("cpu")


def own_card() -> Card | None:
    """The card of this machine with what is free on it now; None without one."""
    try:
        return find_card("auto")
    except EnvironmentFault:
        return None


def refuse_several(num_gpus: int) -> None:
    """Raise InputError for more than one card, which the memory model does not cover."""
    if num_gpus > 1:
        raise InputError(
            f"--num-gpus is {num_gpus}, but only runs on one card are modeled so far",
            hint="leave it out: with plain data parallelism each card needs at least what one card needs alone",
        )


def request_for(model_name: str, card: Card, wishes: Wishes, access: Access = FULL_ACCESS) -> Request:
    """The question to the planner. Raises UnknownModelError, ConfigError or DataError."""
    knobs = pinned_knobs(wishes)
    method = knobs.pop("method", wishes.method)
    if method == "full" and "lora" in knobs:
        raise ConfigError("full fine-tuning has no adapter, so lora.r has no effect", hint="leave it out, or use lora")
    if wishes.data is not None and not access.files:
        raise ConfigError("files of this machine are not read here", hint="give the number of rows instead")
    model = access.resolve(model_name).profile
    return Request(
        model=model,
        gpu=card.gpu,
        method=method,
        effective_batch_size=wishes.batch_size or EFFECTIVE_BATCH_SIZE,
        knobs=knobs,
        lengths=_lengths(wishes.data, loadable_name(model, model_name), access.inspect) if wishes.data else None,
        free_bytes=card.free_bytes,
        model_name=model_name,
        experience=access.experience(),
        num_rows=wishes.rows,
    )


def pinned_knobs(wishes: Wishes) -> dict[str, Any]:
    """All knobs that `wishes` name, nested as in a run file. Raises ConfigError for what is wrong by itself."""
    knobs = dict(wishes.knobs)
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


def _lengths(data: Path, model: str, inspect: Inspect) -> DataLengths:
    from planner.data_inspection import lengths_of

    report = inspect(data, model)
    if report.rejected:
        first = report.rejected[0]
        raise DataError(
            f"{data}, {first.place}: {first.what}",
            hint=f"{len(report.rejected):,} of {report.num_rows:,} rows cannot be trained on; "
            f"`fitune data {data}` lists them",
        )
    return lengths_of(report)


def _section(knobs: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = knobs.get(name, {})
    return section if isinstance(section, Mapping) else {}
