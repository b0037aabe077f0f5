from dataclasses import replace

import pytest

import planner
from planner.explore.length_grid import length_grid
from planner.predict.prediction import Target, predict
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

FITS = planner.can("mistral-7b", "24GB", method="qlora")
DOES_NOT = planner.can("70b", "t4")


def cells(grid):
    return [cell for row in grid.cells for cell in row if cell]


@pytest.mark.parametrize("plan", [FITS, DOES_NOT], ids=["fits", "does not"])
def test_more_tokens_never_cost_less(plan):
    grid = length_grid(plan)
    sizes = [[cell.estimate.process_bytes for cell in row] for row in grid.cells]
    assert all(row == sorted(row) for row in sizes)
    assert all(list(column) == sorted(column) for column in zip(*sizes, strict=True))


def test_the_plan_itself_is_a_cell_with_its_own_estimate():
    grid, config = length_grid(FITS), FITS.config
    row = grid.micro_batches.index(config.per_device_train_batch_size)
    cell = grid.cells[row][grid.lengths.index(config.max_length)]
    assert (cell.estimate.process_bytes, cell.verdict) == (FITS.estimate.process_bytes, FITS.verdict)


def test_a_cell_is_what_its_configuration_is_estimated_at():
    for cell in cells(length_grid(FITS))[::7]:
        again = predict(cell.config, Target(find_model("mistral-7b"), find_gpu("24GB")))
        assert again.estimate.process_bytes == cell.estimate.process_bytes
        assert cell.config.effective_batch_size >= FITS.config.effective_batch_size


def test_a_grid_has_both_sides_of_the_frontier():
    assert {cell.verdict for cell in cells(length_grid(FITS))} >= {"fits", "no"}
    assert {cell.verdict for cell in cells(length_grid(DOES_NOT))} == {"no"}


def test_lengths_end_with_the_positions_of_the_model_and_have_the_plans_own():
    plan = planner.can("gpt2", "24GB", max_length=300)
    assert length_grid(plan).lengths == (256, 300, 512, 1024)
    long = planner.can("llama3.1-8b", "80GB", max_length=100_000)
    assert 100_000 in length_grid(long).lengths
    assert len(length_grid(long).lengths) == 8


def test_what_an_objective_does_not_allow_is_left_out():
    grid = length_grid(planner.can("1.1b", "24GB", objective="kto"))
    assert all(cell is None for cell in grid.cells[grid.micro_batches.index(1)])
    assert all(grid.cells[grid.micro_batches.index(2)])


def test_a_question_of_other_length_changes_nothing_in_the_request():
    request = FITS.request
    length_grid(FITS)
    assert FITS.request == replace(request)
