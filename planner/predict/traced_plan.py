"""Plans for adapters that the closed form does not describe: searched as if they were LoRA, and traced where it counts.

A trace takes seconds, so not every candidate can have one. LoRA on the same base orders them; the chosen one is
traced, all others are taken to differ from LoRA by the same factor, and the search is repeated until it chooses what
was traced.
"""

from dataclasses import dataclass, replace

from planner.memory.estimate import MemoryEstimate, estimate
from planner.memory.verdict import verdict
from planner.predict.prediction import Target, Tracing, predict_traced
from planner.records.experience import NO_EXPERIENCE
from planner.search.nearest import shortfall
from planner.search.planning import Plan, make_plan
from planner.search.request import Request
from planner.step.network import network
from planner.step.resolve import linear_names
from planner.step.step_spec import Adapter, StepSpec
from profiles.gpu import GpuProfile
from profiles.model import ModelProfile

MOST_TRACES = 4

USUAL_RANK = 16
"""Rank of the LoRA that stands for a method without one."""


@dataclass(frozen=True, slots=True)
class _StandIn:
    """The memory of a step with LoRA in place of its adapter, times a factor."""

    factor: float

    def __call__(self, model: ModelProfile, step: StepSpec, gpu: GpuProfile | None) -> MemoryEstimate:
        adapter = step.adapter
        assert adapter is not None, "only adapters go without a description"
        targets = adapter.targets or tuple(sorted(linear_names(network(model, step.objective))))
        lora = Adapter(adapter.r or USUAL_RANK, targets, adapter.dropout, adapter.dtype)
        return estimate(model, replace(step, adapter=lora), gpu).scaled(self.factor)


def traced_plan(request: Request, why: str, tracing: Tracing) -> Plan:
    """The best plan that traces were found for; `why` the closed form does not do.

    The estimate of the choice is traced, those of the alternatives are not. Raises as `make_plan` and `predict_traced`.
    """
    # What earlier runs taught is of the formulas, and no part of a traced figure.
    request = replace(request, experience=NO_EXPERIENCE)
    target = Target(request.model, request.gpu, request.free_bytes, cluster=request.cluster)
    traced: dict[str, MemoryEstimate] = {}
    plans: list[Plan] = []
    factor = 1.0
    with tracing(why):
        for _ in range(MOST_TRACES):
            plan = make_plan(request, _StandIn(factor))
            key = plan.closest.model_dump_json()
            if settled := traced.get(key):
                return _with(plan, settled)
            traced[key] = predict_traced(plan.closest, target).estimate
            factor *= traced[key].process_bytes / plan.estimate.process_bytes
            plans.append(_with(plan, traced[key]))
    return next((plan for plan in reversed(plans) if plan.verdict != "no"), plans[-1])


def _with(plan: Plan, memory: MemoryEstimate) -> Plan:
    """`plan` with a traced memory."""
    fits = verdict(memory, plan.usable_bytes)
    host = plan.request.cluster.host_memory_bytes
    note = "the memory of the choice was traced; all other figures are those of LoRA, corrected by it"
    return replace(
        plan,
        estimate=memory,
        verdict=fits,
        config=None if fits == "no" else plan.config or plan.closest,
        shortfall=shortfall(memory, plan.usable_bytes, host) if fits == "no" else None,
        nearest=plan.nearest if fits == "no" else (),
        notes=(*plan.notes, note),
    )
