"""Each objective with each method trains on a CPU, is measured as predicted, and can be loaded again."""

import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # The base of a reward model begins without its score.
    pytest.mark.filterwarnings("ignore:Some weights of:UserWarning"),
]

ROWS = ("sft", "dpo", "ipo", "orpo", "kto", "reward", "sft of an encoder-decoder")
METHODS = ("full", "lora", "qlora nf4")
CASES = [(row, method) for row in ROWS for method in METHODS]

TOLERANCE = 0.03


@pytest.mark.parametrize(("row", "method"), CASES)
def test_the_loss_falls(row, method):
    from tests.trainer.objective_runs import outcome

    first, last = outcome(row, method).improvement
    assert last < 0.97 * first


@pytest.mark.parametrize(("row", "method"), CASES)
def test_what_was_saved_is_what_was_trained(row, method):
    import torch

    from tests.trainer.objective_runs import last_checkpoint, outcome, reloaded_output

    config = outcome(row, method).config
    final = reloaded_output(config, Path(config.output_dir) / "final")
    assert torch.equal(final, reloaded_output(config, last_checkpoint(config)))
    assert not torch.allclose(final, reloaded_output(config, None), atol=1e-3)


@pytest.mark.parametrize(("row", "method"), CASES)
def test_the_peak_of_the_trainers_own_step_is_predicted(row, method):
    from tests.trainer.objective_runs import outcome

    found = outcome(row, method)
    assert found.predicted_bytes == pytest.approx(found.measured_bytes, rel=TOLERANCE)


@pytest.mark.parametrize("row", ["dpo", "orpo", "reward"])
def test_preferences_drop_nothing_out_and_need_no_masks(row, tmp_path):
    from planner.config.run_config import LoraKnobs
    from tests.trainer.objective_runs import run_config, train

    knobs = {"gradient_checkpointing": False, "max_steps": 1, "output_dir": str(tmp_path)}
    found = train(run_config(row, "qlora nf4", lora=LoraKnobs(r=8, lora_dropout=0.1), **knobs))
    assert found.predicted_bytes == pytest.approx(found.measured_bytes, rel=TOLERANCE)


@cache
def cells():
    """What the table in trainer/README.md says of each objective and method."""
    from tests.trainer.objective_runs import BEGIN, END, README

    text = README.read_text(encoding="utf-8")
    head, _, *lines = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    assert head == f"| objective | {' | '.join(METHODS)} |"
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {(row, method): cell for row, *found in rows for method, cell in zip(METHODS, found, strict=True)}


def test_the_table_of_the_readme_has_each_objective_and_method():
    assert list(cells()) == CASES


@pytest.mark.parametrize(("row", "method"), CASES)
def test_the_table_of_the_readme_is_what_comes_out(row, method):
    from tests.trainer.objective_runs import outcome

    first, last, error = map(float, re.fullmatch(r"(\S+) to (\S+), memory (\S+)%", cells()[row, method]).groups())
    found = outcome(row, method)
    # Another processor adds up in another order.
    assert found.improvement == (pytest.approx(first, rel=0.02), pytest.approx(last, rel=0.1, abs=0.01))
    assert 100 * (found.predicted_bytes / found.measured_bytes - 1) == pytest.approx(error, abs=0.5)
