"""Plans and estimates as JSON objects. `planner/README.md` lists their keys."""

from dataclasses import asdict
from typing import Any

from planner.memory.estimate import MemoryEstimate
from planner.memory.verdict import Verdict
from planner.predict.prediction import Prediction
from planner.search.candidate import Candidate
from planner.search.common_cards import CardAnswer
from planner.search.nearest import Change
from planner.search.planning import Plan
from profiles.gpu import GpuProfile

Document = dict[str, Any]


def estimate_document(
    estimate: MemoryEstimate, model: str, gpu: GpuProfile | None, usable_bytes: int, verdict: Verdict
) -> Document:
    """An estimate and how it lies to the `usable_bytes` of the card, or of the CPU's memory where `gpu` is null."""
    return {
        "model": model,
        "gpu": gpu.name if gpu else None,
        "fits": verdict == "fits",
        "verdict": verdict,
        "allocated_bytes": estimate.allocated_bytes,
        "reserved_bytes": estimate.reserved_bytes,
        "process_bytes": estimate.process_bytes,
        "interval_bytes": list(estimate.interval_bytes),
        "host_bytes": estimate.host_bytes,
        "usable_bytes": usable_bytes,
        "binding_phase": estimate.binding_phase,
        "phases": dict(estimate.phases),
        "components": [{"name": one.name, "bytes": one.bytes, "why": one.why} for one in estimate.components],
    }


def prediction_document(prediction: Prediction) -> Document:
    """What is predicted of one given configuration, which is in it."""
    target = prediction.target
    memory = estimate_document(
        prediction.estimate, target.name, target.gpu, prediction.usable_bytes, prediction.verdict
    )
    return memory | {
        "by": prediction.by,
        "trainer": target.trainer_name,
        "config": prediction.config.model_dump(mode="json"),
        "tokens_per_second": prediction.speed.tokens_per_second if prediction.speed else None,
        "evidence": asdict(prediction.evidence) if prediction.evidence else None,
        "experience": asdict(prediction.lesson),
    }


def plan_document(plan: Plan) -> Document:
    """The answer to a request, without the configurations that lost."""
    model, gpu, cost = plan.request.model, plan.request.gpu, plan.cost
    cards = {"cards": [card_document(answer) for answer in plan.cards]} if plan.cards else {}
    return {
        "model": model.hf_id,
        "gpu": gpu.name if gpu else None,
        "verdict": plan.verdict,
        "config": plan.config.model_dump(mode="json") if plan.config else None,
        "estimate": estimate_document(plan.estimate, model.hf_id, gpu, plan.usable_bytes, plan.verdict),
        "tokens_per_second": plan.tokens_per_second,
        "evidence": asdict(plan.evidence) if plan.evidence else None,
        "experience": asdict(plan.lesson),
        "cost": asdict(cost) if cost else None,
        "alternatives": [_candidate(candidate) for candidate in plan.alternatives],
        "shortfall": plan.shortfall,
        "nearest": [_change(change) for change in plan.nearest],
        "notes": list(plan.notes),
        **cards,
    }


def card_document(answer: CardAnswer) -> Document:
    """The answer for one of several cards, with its price."""
    price = answer.gpu.price
    return {
        "gpu": answer.gpu.name,
        "usable_bytes": answer.gpu.memory_bytes,
        "usd_per_hour": price.median_usd_per_hour if price else None,
        **_candidate(answer.candidate),
    }


def losers_document(plan: Plan) -> list[Document]:
    """Every other configuration that was considered, and why it was not chosen."""
    return [{"config": loser.config.model_dump(mode="json"), "reason": loser.reason} for loser in plan.losers]


def _change(change: Change) -> Document:
    return {"change": change.what, **_candidate(change.candidate)}


def _candidate(candidate: Candidate) -> Document:
    estimate = candidate.estimate
    return {
        "verdict": candidate.verdict,
        "config": candidate.config.model_dump(mode="json"),
        "process_bytes": estimate.process_bytes,
        "interval_bytes": list(estimate.interval_bytes),
        "tokens_per_second": candidate.tokens_per_second,
    }
