"""From what a user asks to a `Request`: which model, which card, which knobs are pinned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.asking.wishes import Wishes
from planner.config.settings import check_knobs, knobs_in, merged
from planner.data.lengths import DataLengths
from planner.predict.prediction import Tracing, untold
from planner.records.experience import NEWEST, NO_EXPERIENCE, Experience
from planner.search.request import EFFECTIVE_BATCH_SIZE, Request, groups_of, loadable_name
from planner.step.cluster import ONE_CARD, Cluster
from profiles.errors import ConfigError, DataError, EnvironmentFault
from profiles.gpu import GpuProfile
from profiles.main_memory import available_memory_bytes
from profiles.model_catalog import ResolvedModel, resolve_model

if TYPE_CHECKING:
    from planner.data.report import DataReport
    from profiles.recipe import Recipe

Inspect = Callable[[Path, str], "DataReport"]
"""Reads a data file as a model does, given its Hub id or folder."""

Resolve = Callable[[str], ResolvedModel]
"""Finds a model by what the user calls it."""

RUN_FILE_SUFFIXES = (".yaml", ".yml")

ANSWERED_ELSEWHERE = {"model": "MODEL", "gpu": "--gpu", "version": "no option"}


@dataclass(frozen=True, slots=True)
class Card:
    """What is planned for: a card, or the CPU (`gpu` None), and the memory that is free on it now, if it is here.

    Where there are several, it is the smallest of the `cluster`.
    """

    gpu: GpuProfile | None
    free_bytes: int | None = None
    cluster: Cluster = ONE_CARD


def own_experience() -> Experience:
    """What the runs in this machine's store have taught; where it cannot be read, nothing but that."""
    from planner.records.run_store import StoreError, recall, store_path

    path = store_path()
    try:
        return Experience(recall(path, newest=NEWEST)) if path else NO_EXPERIENCE
    except StoreError as error:
        return Experience(fault=f"{error.message}; the answer does without earlier runs")


def _inspect(data: Path, model: str) -> "DataReport":
    # Starting processes takes time to import, and most questions come without data.
    from planner.data.inspection import inspect_data

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
    """The card of this name, or those of a cloud's machine; `auto` are those of this machine, `cpu` its processor.

    Raises UnknownGpuError, and EnvironmentFault for `auto` without a driver or card.
    """
    if name.lower() == "cpu":
        return Card(None, available_memory_bytes())
    if name.lower() == "auto":
        return _cards_here()
    from profiles.gpu_catalog import find_gpu
    from profiles.instance import find_instance

    if machine := find_instance(name):
        cluster = Cluster(machine.num_gpus, instance=machine, host_memory_bytes=machine.memory_bytes)
        return Card(find_gpu(machine.gpu), cluster=cluster)
    return Card(find_gpu(name))


def _cards_here() -> Card:
    """This machine's cards; unlike ones share a run as the one with the least free memory can."""
    from profiles.detect import detect_usable_gpus

    found = detect_usable_gpus()
    smallest = min(found, key=lambda gpu: gpu.free_bytes)
    cluster = Cluster(len(found), host_memory_bytes=available_memory_bytes()) if len(found) > 1 else ONE_CARD
    return Card(smallest.profile, smallest.free_bytes, cluster)


def card_or_cpu(name: str | None) -> Card:
    """The card of this name; without a name this machine's, or its CPU if it has none."""
    return find_card(name) if name is not None else own_card() or find_card("cpu")


def own_card() -> Card | None:
    """The card of this machine with what is free on it now; None without one."""
    try:
        return find_card("auto")
    except EnvironmentFault:
        return None


def request_for(model_name: str, card: Card, wishes: Wishes, access: Access = FULL_ACCESS) -> Request:
    """The question to the planner. Raises UnknownModelError, ConfigError or DataError."""
    knobs = pinned_knobs(wishes)
    cluster = cluster_of(card, knobs)
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
        effective_batch_size=batch_of(wishes.batch_size, knobs, cluster),
        cluster=cluster,
        knobs=knobs,
        lengths=_lengths(wishes.data, loadable_name(model, model_name), access.inspect) if wishes.data else None,
        free_bytes=card.free_bytes,
        model_name=model_name,
        experience=access.experience(),
        num_rows=wishes.rows,
    )


def cluster_of(card: Card, knobs: dict[str, Any]) -> Cluster:
    """The cluster of `card` with the numbers of cards and machines that `knobs` have, which are taken out of them."""
    num_gpus, num_nodes = knobs.pop("num_gpus", card.cluster.num_gpus), knobs.pop("num_nodes", card.cluster.num_nodes)
    return replace(card.cluster, num_gpus=num_gpus, num_nodes=num_nodes)


def batch_of(asked: int | None, knobs: Mapping[str, Any], cluster: Cluster) -> int:
    """Examples of an optimizer step: what was asked for, or the usual number, rounded up to what the cards can share.

    Raises ConfigError if a number that was asked for is not a multiple of the cards.
    """
    groups = groups_of(cluster, knobs)
    if asked is None:
        return -(-EFFECTIVE_BATCH_SIZE // groups) * groups
    if asked % groups:
        raise ConfigError(
            f"--batch-size is {asked}, but {groups} cards with rows of their own share it",
            hint=f"use a multiple of {groups}, such as {-(-asked // groups) * groups}",
        )
    return asked


def pinned_knobs(wishes: Wishes) -> dict[str, Any]:
    """All knobs that `wishes` name, nested as in a run file. Raises ConfigError for what is wrong by itself."""
    knobs = dict(wishes.knobs)
    for name in ANSWERED_ELSEWHERE.keys() & knobs.keys():
        raise ConfigError(f"--set cannot change {name}", hint=f"it comes from {ANSWERED_ELSEWHERE[name]}")
    for name in ("num_gpus", "num_nodes", "max_length"):
        if (value := getattr(wishes, name)) is not None:
            knobs[name] = value
    if wishes.lora_r is not None:
        knobs["lora"] = {**_section(knobs, "lora"), "r": wishes.lora_r}
    if wishes.objective is not None:
        knobs["objective"] = wishes.objective
    if wishes.data is not None:
        knobs["data"] = {**_section(knobs, "data"), "path": str(wishes.data)}
    check_knobs(knobs)
    return knobs


def _lengths(data: Path, model: str, inspect: Inspect) -> DataLengths:
    from planner.data.inspection import lengths_of

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
