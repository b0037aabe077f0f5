"""What is asked and how the answers are told; `python -m calibration.plan_quality` measures them."""

import json
from dataclasses import replace

import pytest

from calibration.measuring.grid import checkpointing
from calibration.measuring.measurement import Attempt, Expected, Measurement
from calibration.plan_quality import ROWS, Question, answers, grid_of, print_answers, questions
from planner.records.run_record import Measured, Prediction
from planner.units import GIB
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

H100 = find_gpu("h100")
QUESTION = Question(find_model("llama3.2-1b"), 15 * GIB, 1024)


@pytest.fixture(scope="module")
def grid():
    return grid_of(QUESTION, H100)


def measurement(planned, tokens_per_second, outcome="ran"):
    seconds = planned.seconds / (planned.point.config.max_steps or 1)
    return Measurement(
        time="2026-11-28T00:00:00+00:00",
        point=planned.point,
        expected=Expected(closed_form=Prediction.model_validate(planned.prediction.figures), verdict="fits"),
        attempt=Attempt(
            outcome=outcome,
            measured=Measured(allocated_bytes=1, tokens_per_second=tokens_per_second),
            seconds_per_step=seconds * 0.8,
        ),
    )


def test_a_large_card_is_asked_at_least_twelve_questions():
    assert len(questions(H100)) >= 12
    assert len({(one.model.hf_id, one.cap_bytes, one.max_length) for one in questions(H100)}) >= 12


def test_a_small_card_is_not_asked_about_more_than_it_has():
    assert 0 < len(questions(find_gpu("a10g"))) < len(questions(H100))


def test_the_choice_of_the_planner_comes_first_and_fits(grid):
    assert grid[0].prediction.verdict == "fits"
    assert len(grid) > 2


def test_others_of_the_grid_train_the_same_in_another_way(grid):
    configs = [one.point.config for one in grid]
    assert len({(c.method, c.quantization, c.dtype, c.optim, c.max_length) for c in configs}) == 1
    others = list(zip(configs, grid, strict=True))[1:]
    ways = [(checkpointing(c), c.loss, one.prediction.verdict == "no") for c, one in others]
    assert len(set(ways)) == len(ways)
    assert len(set(configs)) == len(configs)


def test_on_a_cpu_the_others_are_no_smaller_batches_for_lack_of_a_speed():
    sizes = {one.point.config.per_device_train_batch_size for one in grid_of(questions(None)[0], None)}
    assert sizes == {ROWS}


def test_points_stay_within_the_memory_of_the_question(grid):
    assert {one.point.cap_bytes for one in grid} == {15 * GIB}


def test_the_share_is_that_of_the_fastest_that_ran(grid):
    measured = [
        measurement(grid[0], 900.0),
        measurement(grid[1], 1000.0),
        measurement(grid[2], 5000.0, outcome="out of memory"),
    ]
    (answer,) = answers([(QUESTION, grid)], measured)
    assert answer.share == pytest.approx(0.9)
    assert answer.tried == 3
    assert answer.step_ratios == pytest.approx((1.25, 1.25))


def test_a_choice_that_was_not_measured_has_no_share(grid):
    assert answers([(QUESTION, grid)], [measurement(one, 1.0) for one in grid[1:]]) == []
    failed = [measurement(grid[0], 1.0, outcome="failed"), *(measurement(one, 1.0) for one in grid[1:])]
    assert answers([(QUESTION, grid)], failed) == []


def test_a_choice_that_met_the_end_of_memory_has_a_share_of_nothing(grid):
    ended = [measurement(grid[0], None, outcome="out of memory"), *(measurement(one, 1.0) for one in grid[1:])]
    (answer,) = answers([(QUESTION, grid)], ended)
    assert answer.share == 0


def test_what_is_printed_says_how_many_choices_are_good(grid, capsys):
    (answer,) = answers([(QUESTION, grid)], [measurement(grid[0], 990.0), measurement(grid[1], 1000.0)])
    print_answers([answer, replace(answer, tokens_per_second=500.0)], as_json=False)
    out = capsys.readouterr().out
    assert "1 of 2 choices reach 95 % of the best of their grid; the least 50%" in out
    assert "median error 25.0%" in out
    print_answers([answer], as_json=True)
    assert json.loads(capsys.readouterr().out)["least_share"] == pytest.approx(0.99)
