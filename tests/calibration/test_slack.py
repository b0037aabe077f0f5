"""What the allocator holds beside a pass: the shares in `profiles/slack.toml` and the simulated steps behind them."""

import pytest

from calibration.slack import SLACK_FILE, Sizes, as_toml, fitted, left_out_errors, read_steps, simulated_bytes, sizes


def test_the_file_is_what_the_simulated_steps_give():
    steps = read_steps()
    measured = [sizes(step) for step in steps]
    text = as_toml(measured, fitted(measured), left_out_errors(steps, measured), steps[0].row["versions"])
    assert SLACK_FILE.read_text("utf-8") == text, "run `python -m calibration.slack --write`"


def test_shares_that_made_the_simulated_steps_are_found():
    made = (0.5, 0.2, 0.3)
    blank = [Sizes(900, 1000, 0, 200, 100, 1), Sizes(950, 1000, 0, 90, 400, 1), Sizes(2000, 1000, 0, 50, 700, 1)]
    steps = [Sizes(s.layers, s.loss, 0, s.transients, s.cut, round(s.error(made) + 1)) for s in blank]
    assert fitted(steps) == made


@pytest.mark.slow
def test_a_step_is_simulated_as_it_stands_in_the_file():
    step = min(read_steps(), key=lambda each: each.step.num_tokens * each.model.num_hidden_layers)
    assert simulated_bytes(step.model, step.step) == pytest.approx(step.reserved_bytes, rel=0.005)
