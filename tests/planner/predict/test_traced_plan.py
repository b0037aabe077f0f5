from contextlib import contextmanager

import pytest

from planner.config.run_config import PeftKnobs
from planner.memory.estimate import estimate
from planner.predict.prediction import untold
from planner.predict.traced_plan import traced_plan
from planner.search.planning import make_plan
from planner.search.request import Request
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model
from profiles.peft_method import find_method, peft_facts

OFT = Request(find_model("qwen2.5-1.5b"), find_gpu("t4"), method="peft", knobs={"peft": {"type": "OFT"}})
LORA = Request(OFT.model, OFT.gpu, method="lora", knobs={"quantization": None})


@pytest.fixture
def traces(monkeypatch):
    """Stands for the tracer, which takes ten seconds a step: LoRA, times a factor; notes each question."""

    def set_factor(factor):
        asked = []

        def traced(config, target):
            asked.append(config)
            lora = config.model_copy(update={"method": "lora", "peft": None, "lora": LORA_KNOBS})
            memory = estimate(target.model, resolve_step(lora, target.model, target.gpu), target.gpu).scaled(factor)
            return _Predicted(memory)

        monkeypatch.setattr("planner.predict.traced_plan.predict_traced", traced)
        return asked

    return set_factor


class _Predicted:
    def __init__(self, memory):
        self.estimate = memory


LORA_KNOBS = make_plan(LORA).config.lora
ADAPTER = {"method": "peft", "peft": PeftKnobs(type="OFT"), "lora": None}


def test_a_method_that_takes_what_lora_takes_is_planned_as_lora_is(traces):
    asked = traces(1.0)
    plan, lora = traced_plan(OFT, "", untold), make_plan(LORA)
    assert len(asked) == 1
    assert plan.config == lora.config.model_copy(update=ADAPTER)
    assert plan.estimate.process_bytes == lora.estimate.process_bytes


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.2, 1.35, 1.8])
def test_what_is_said_to_fit_was_traced_and_does(traces, factor):
    asked = traces(factor)
    plan = traced_plan(OFT, "", untold)
    assert plan.verdict != "no"
    assert plan.closest in asked
    assert plan.estimate.process_bytes <= plan.usable_bytes
    assert len(asked) <= 4


def test_the_search_begins_again_with_what_a_trace_showed(traces):
    asked = traces(1.8)
    plan = traced_plan(OFT, "", untold)
    assert asked[0] == make_plan(LORA).config.model_copy(update=ADAPTER)
    assert plan.config != asked[0]


@pytest.mark.parametrize("name", [method.name for method in peft_facts().methods.values() if method.works])
def test_each_method_is_planned_on_a_base_on_which_it_trains(traces, name):
    traces(1.0)
    method = find_method(name)
    base = "bfloat16" if method.bases["bfloat16"].works else "float32"
    knobs = {"peft": {"type": name, **method.example}, "dtype": base, "quantization": None}
    plan = traced_plan(Request(OFT.model, find_gpu("a10g"), method="peft", knobs=knobs), "", untold)
    assert plan.config.peft.type == name
    assert all(getattr(plan.config, knob) == value for knob, value in method.bases[base].needs.items())


def test_a_choice_that_its_trace_refuses_says_what_is_missing(traces, monkeypatch):
    monkeypatch.setattr("planner.predict.traced_plan.MOST_TRACES", 1)
    traces(1.8)
    plan = traced_plan(OFT, "", untold)
    assert (plan.verdict, plan.config) == ("no", None)
    assert "more than the" in plan.shortfall


def test_what_cannot_fit_is_refused_with_what_is_missing(traces):
    traces(9.0)
    plan = traced_plan(OFT, "", untold)
    assert plan.verdict == "no"
    assert plan.config is None
    assert plan.shortfall


def test_a_user_is_told_why_it_takes_seconds(traces):
    traces(1.0)
    told = []

    @contextmanager
    def tracing(why):
        told.append(why)
        yield

    assert "was traced" in traced_plan(OFT, "nobody described it", tracing).notes[-1]
    assert told == ["nobody described it"]


def test_a_method_that_cannot_train_on_the_base_is_refused_before_anything_is_traced(traces):
    asked = traces(1.0)
    request = Request(OFT.model, OFT.gpu, method="peft", knobs={"peft": {"type": "LOHA"}, "quantization": "nf4"})
    with pytest.raises(ConfigError, match="LOHA does not train on a base in nf4"):
        traced_plan(request, "", untold)
    assert asked == []
