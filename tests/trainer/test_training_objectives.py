"""Each objective with each method trains on a CPU, is measured as predicted, and can be loaded again."""

import re
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


def test_the_table_of_the_readme_has_each_objective_and_method():
    from tests.trainer.objective_runs import BEGIN, END, README

    text = README.read_text(encoding="utf-8")
    lines = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    assert lines[0] == f"| objective | {' | '.join(METHODS)} |"
    cells = {line.split(" | ")[0].lstrip("| "): line.rstrip(" |").split(" | ")[1:] for line in lines[2:]}
    assert list(cells) == list(ROWS)
    assert all(
        len(row) == len(METHODS) and all(re.fullmatch(r"\S+ to \S+, memory [+-]\d+\.\d%", cell) for cell in row)
        for row in cells.values()
    )
