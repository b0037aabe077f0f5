"""When nothing fits: what is missing, and the smallest changes that would make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.data.lengths import LENGTH_STEP
from planner.memory.estimate import MemoryEstimate
from planner.memory.verdict import missing_bytes
from planner.search.candidate import Candidate
from planner.search.ranking import Estimator, SearchResult, search
from planner.search.request import Request, RequestedMethod, groups_of
from planner.search.space import CHECKPOINTS, OPTIMIZERS, openings
from planner.step.cluster import Cluster
from planner.units import format_bytes
from profiles.errors import ConfigError
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import all_gpus

CARDS_OF_A_MACHINE = 8
MOST_CARDS = 1024
"""The most that is looked at."""

SHORTEST_SUGGESTED = 2 * LENGTH_STEP
"""Shorter rows hold no answer to anything."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the request that makes it fit, and the best configuration then; `gpu` if the card changes."""

    what: str
    candidate: Candidate
    gpu: GpuProfile | None = None


def shortfall(estimate: MemoryEstimate, usable: int, host: int | None = None) -> str:
    """A sentence: which phase of the step needs how much, what for, and what is missing of `usable` bytes of the card.

    Or what is missing of the `host` bytes of main memory, where these are the reason.
    """
    if host is not None and estimate.host_bytes > host:
        return (
            f"what waits in host memory takes {format_bytes(estimate.host_bytes)} of each machine, "
            f"{format_bytes(estimate.host_bytes - host)} more than the {format_bytes(host)} there are"
        )
    largest = sorted(estimate.components, key=lambda component: -component.bytes)[:3]
    parts = ", ".join(f"{format_bytes(component.bytes)} {component.name}" for component in largest)
    return (
        f"the {estimate.binding_phase} phase brings the process to {format_bytes(estimate.interval_bytes[1])} "
        f"({parts}), {format_bytes(missing_bytes(estimate, usable))} more than the {format_bytes(usable)} there are"
    )


def nearest_changes(request: Request, estimator: Estimator) -> tuple[Change, ...]:
    """What would make `request` fit, the smallest change first: shorter rows, a cheaper method, more or other cards."""
    return tuple(
        change
        for changes in (_shorter_rows, _other_methods, _more_cards, _other_card)
        if (change := next(changes(request, estimator), None)) is not None
    )


def _shorter_rows(request: Request, estimator: Estimator) -> Iterator[Change]:
    length = request.knobs.get("max_length")
    while length and length // 2 >= SHORTEST_SUGGESTED:
        length //= 2
        shorter = replace(request, knobs={**request.knobs, "max_length": length})
        if _fitting(_frugal(shorter), estimator) and (fitting := _fitting(shorter, estimator)):
            yield Change(f"max_length {length}", fitting)


def _other_methods(request: Request, estimator: Estimator) -> Iterator[Change]:
    if "method" in request.knobs or "quantization" in request.knobs:
        return
    order: tuple[RequestedMethod, ...] = ("full", "lora", "qlora")
    asked = order.index(request.method) if request.method in order else len(order)
    for method in order[asked + 1 :]:
        if fitting := _fitting(replace(request, method=method), estimator):
            yield Change(f"method {method}", fitting)


def _more_cards(request: Request, estimator: Estimator) -> Iterator[Change]:
    """The fewest cards of this kind that do, within one machine as far as it holds them."""
    if request.gpu is None or (request.free_bytes is not None and request.cluster.num_nodes == 1):
        return
    for num_gpus, num_nodes in _sizes(request.cluster):
        cluster = replace(request.cluster, num_gpus=num_gpus, num_nodes=num_nodes)
        groups = groups_of(cluster, request.knobs)
        rows = -(-request.effective_batch_size // groups) * groups
        more = replace(request, cluster=cluster, effective_batch_size=rows)
        if _fitting(_frugal(more), estimator) and (fitting := _fitting(more, estimator)):
            yield Change(_cards(request.gpu, cluster) + _host_words(fitting), fitting, request.gpu)


def _sizes(cluster: Cluster) -> Iterator[tuple[int, int]]:
    """More and more cards: twice as many in a machine, then twice as many machines."""
    num_gpus, num_nodes = cluster.num_gpus, cluster.num_nodes
    while cluster.instance is None and 2 * num_gpus <= CARDS_OF_A_MACHINE:
        num_gpus *= 2
        yield num_gpus, num_nodes
    while 2 * num_gpus * num_nodes <= MOST_CARDS:
        num_nodes *= 2
        yield num_gpus, num_nodes


def _host_words(fitting: Candidate) -> str:
    """What the main memory has to hold, where something is offloaded to it."""
    offloads = fitting.config.parallel is not None and fitting.config.parallel.offload != "none"
    return f" and {format_bytes(fitting.estimate.host_bytes)} of host memory" if offloads else ""


def _cards(gpu: GpuProfile, cluster: Cluster) -> str:
    """So many cards, with their price."""
    machine = f" in {cluster.num_nodes} machines" if cluster.num_nodes > 1 else ""
    price = cluster.usd_per_hour(gpu)
    return f"{cluster.world_size} x {gpu.name}{machine}" + (f" (about {price:,.2f} USD/h)" if price else "")


def _other_card(request: Request, estimator: Estimator) -> Iterator[Change]:
    """The cheapest card by the hour; where none has a price, the smallest."""
    if request.gpu is None or request.cluster.instance is not None:
        return
    least: dict[tuple[object, ...], int] = {}
    for gpu in sorted(all_gpus(), key=_cost):
        # The same step has the same tensors on every card that does the same.
        kind = gpu.supports_bf16, gpu.supports_int8, gpu.supports_bnb_4bit, gpu.supports_flash_attention
        enough = gpu.memory_bytes > max(request.usable_bytes, least.get(kind, 0))
        if not enough or gpu.vendor != (request.gpu.vendor or "NVIDIA"):
            continue
        bigger = request.on(gpu)
        frugal = _searched(_frugal(bigger), estimator)
        if frugal is None or frugal.closest.verdict != "fits":
            least[kind] = frugal.closest.estimate.allocated_bytes if frugal else 0
        elif fitting := _fitting(bigger, estimator):
            yield Change(_offer(gpu, request.cluster), fitting, gpu)


def _cost(gpu: GpuProfile) -> tuple[bool, float, int]:
    return gpu.price is None, gpu.price.median_usd_per_hour if gpu.price else 0.0, gpu.memory_bytes


def _offer(gpu: GpuProfile, cluster: Cluster) -> str:
    if cluster.world_size > 1:
        return _cards(gpu, cluster)
    return f"{gpu.name} (about {gpu.price.median_usd_per_hour:.2f} USD/h)" if gpu.price else gpu.name


def _fitting(request: Request, estimator: Estimator) -> Candidate | None:
    found = _searched(request, estimator)
    return found.best if found and found.best and found.best.verdict == "fits" else None


def _searched(request: Request, estimator: Estimator) -> SearchResult | None:
    """The best for `request`; None if a knob that the user pinned does not suit the other card."""
    try:
        return search(request, estimator, only_best=True)
    except ConfigError:
        return None


def _frugal(request: Request) -> Request:
    """`request` with the open knobs at their smallest: a few estimates tell whether anything fits."""
    max_length, rank = openings(request)[-1]
    smallest = {
        **CHECKPOINTS[0],
        # What 8-bit optimizers save, shares of the states save as well, and they need plain tensors.
        "optim": OPTIMIZERS[-1 if request.cluster.world_size == 1 else 0],
        "per_device_train_batch_size": request.batches()[0][0],
        "max_length": max_length,
    }
    lora = {"lora": {"r": rank} | request.knobs.get("lora", {})} if request.method not in ("full", "peft") else {}
    return replace(request, knobs=smallest | dict(request.knobs) | lora)
