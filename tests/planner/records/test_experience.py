import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.estimate import estimate
from planner.predict.prediction import Target, predict
from planner.records.experience import Experience, agreed, lesson_words
from planner.search.planning import make_plan
from planner.search.request import Request
from planner.step.resolve import resolve_step
from tests.planner.run_records import LORA, MODEL, T4, made_up_run


def lesson(runs, config=LORA, gpu=T4):
    return Experience(runs).lesson(gpu, config)


def test_a_biased_machine_is_learned_after_three_runs():
    learned = lesson([made_up_run(n, memory=1.2, speed=0.6) for n in range(3)])
    assert learned.num_runs == 3
    assert 1.2 / learned.memory_factor == pytest.approx(1, abs=0.06)
    assert 0.6 / learned.speed_factor == pytest.approx(1, abs=0.15)


def test_more_runs_leave_less_of_the_bias():
    left = [1.2 / lesson([made_up_run(n, memory=1.2) for n in range(count)]).memory_factor for count in (2, 4, 8)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(1, abs=0.025)


@pytest.mark.parametrize("absurd", [0.1, 0.6, 1.7, 50.0])
def test_one_absurd_record_changes_nothing(absurd):
    usual = [made_up_run(n) for n in range(3)]
    learned = lesson([*usual, made_up_run(9, memory=absurd, speed=absurd)])
    assert (learned.memory_factor, learned.speed_factor) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert lesson([made_up_run(9, memory=absurd, speed=absurd)]).memory_factor == 1.0


@pytest.mark.parametrize("absurd", [0.1, 0.6, 1.6, 1.9, 50.0])
def test_one_absurd_record_changes_nothing_of_what_three_biased_runs_taught(absurd):
    biased = [made_up_run(n, memory=memory, speed=0.7) for n, memory in enumerate((1.15, 1.12, 1.17))]
    taught, again = lesson(biased), lesson([*biased, made_up_run(9, memory=absurd, speed=absurd**-3)])
    assert taught.memory_factor > 1.09
    assert (again.memory_factor, again.speed_factor) == pytest.approx((taught.memory_factor, taught.speed_factor))


@given(st.lists(st.floats(0.5, 2.0), min_size=1, max_size=11), st.floats(1e-6, 1e6))
def test_no_single_run_moves_the_answer_beyond_the_others(ratios, absurd):
    bounds = [1.0, *ratios]
    assert min(bounds) * (1 - 1e-9) <= agreed([*ratios, absurd]) <= max(bounds) * (1 + 1e-9)


@given(st.lists(st.floats(0.5, 2.0), max_size=11))
def test_the_opposite_runs_teach_the_opposite(ratios):
    assert math.log(agreed([1 / ratio for ratio in ratios])) == pytest.approx(-math.log(agreed(ratios)), abs=1e-9)


def test_nothing_is_learned_about_another_card_or_method():
    runs = [made_up_run(n, memory=1.2) for n in range(3)]
    qlora = LORA.model_validate(LORA.model_dump() | {"method": "qlora", "quantization": "nf4"})
    assert lesson(runs, gpu=None).num_runs == 0
    assert lesson(runs, config=qlora).num_runs == 0


@pytest.mark.parametrize("fields", [{"status": "failed"}, {"steps": 0}], ids=str)
def test_a_run_that_may_not_have_reached_its_peak_teaches_nothing(fields):
    assert lesson([made_up_run(n, memory=1.2, **fields) for n in range(3)]).num_runs == 0


def test_short_rows_say_nothing_of_the_speed_of_full_ones():
    learned = lesson([made_up_run(n, speed=0.5, tokens_share=0.2) for n in range(3)])
    assert learned.speed_factor == 1.0


def test_a_plan_counts_in_what_was_learned_and_says_so():
    runs = [made_up_run(n, memory=1.1) for n in range(3)]
    knobs = {"max_length": 512}
    usual = make_plan(Request(MODEL, T4, "lora", knobs=knobs))
    plan = make_plan(Request(MODEL, T4, "lora", knobs=knobs, experience=Experience(runs)))
    factor = plan.lesson.memory_factor
    assert factor > 1.05
    assert any("after 3 earlier lora runs on T4, 7.4% more memory than" in note for note in plan.notes)
    assert plan.estimate.process_bytes > plan.estimate.allocated_bytes
    assert plan.estimate.interval_bytes[1] <= plan.usable_bytes or plan.verdict != usual.verdict


def test_a_prediction_counts_it_in_and_its_parts_still_add_up():
    experience = Experience([made_up_run(n, memory=0.9, speed=1.5) for n in range(3)])
    plain, learned = (predict(LORA, Target(MODEL, T4, experience=known)) for known in (Experience(), experience))
    factor = learned.lesson.memory_factor
    assert learned.estimate.process_bytes == pytest.approx(plain.estimate.process_bytes * factor, abs=1)
    assert learned.estimate.learned_bytes == learned.estimate.process_bytes - plain.estimate.process_bytes < 0
    assert sum(part.bytes for part in learned.estimate.components) == learned.estimate.allocated_bytes
    assert learned.speed.tokens_per_second > plain.speed.tokens_per_second


def test_other_trainers_are_not_judged_by_runs_of_this_one():
    experience = Experience([made_up_run(n, memory=1.2) for n in range(3)])
    predicted = predict(LORA, Target(MODEL, T4, trainer="trl", experience=experience))
    assert predicted.lesson.num_runs == 0


def test_a_scaled_estimate_scales_back():
    memory = estimate(MODEL, resolve_step(LORA, MODEL, T4), T4)
    assert memory.scaled(1.25).scaled(0.8).process_bytes == pytest.approx(memory.process_bytes, abs=2)


def test_what_is_said_is_what_is_counted_in():
    said = lesson_words(Experience([made_up_run(n, memory=1.2, speed=0.8) for n in range(3)]), T4, LORA)
    assert (
        said
        == "after 3 earlier lora runs on T4, 14.7% more memory and 15.4% less speed than by the formulas is counted in"
    )
    assert lesson_words(Experience([made_up_run(memory=1.2)]), T4, LORA).startswith("1 earlier lora run on T4 is kept")
    assert lesson_words(Experience([made_up_run(n) for n in range(2)]), T4, LORA).endswith("bear the formulas out")
    assert lesson_words(Experience(), T4, LORA) is None
    assert lesson_words(Experience(fault="the store is damaged"), T4, LORA) == "the store is damaged"
