import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

pytestmark = pytest.mark.slow

MIB = 1 << 20


@pytest.fixture
def show():
    """Feeds a display with two steps and a log, and returns what it printed."""

    def shown(*others: dict[str, float], terminal: bool, width: int = 160) -> str:
        from trainer.loop.progress import ShowProgress, choose_display

        console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
        memory = SimpleNamespace(now_bytes=60 * MIB, allocated_bytes=123 * MIB)
        clock = SimpleNamespace(tokens_per_second=1530.8, seconds_per_step=2.0)
        progress = ShowProgress(choose_display(console), memory, clock, predicted_bytes=120 * MIB)
        state = SimpleNamespace(global_step=2, max_steps=42)
        progress.on_step_end(None, state, None)
        progress.on_log(None, state, None, logs={"loss": 7.3751, "learning_rate": 1e-4})
        for logs in others:
            progress.on_log(None, state, None, logs=logs)
        progress.on_train_end(None, state, None)
        return console.file.getvalue()

    return shown


FIGURES = "loss 7.375  lr 1.00e-04  1,531 tokens/s  memory now 60.0 MiB, peak 123 MiB, predicted 120 MiB"
LINE = f"step 2/42  {FIGURES}  1 min 20 s left"


def test_without_a_terminal_each_log_is_a_plain_line(show):
    assert show(terminal=False) == f"{LINE}\n"


def test_an_evaluation_is_a_line_of_its_own(show):
    lines = show({"eval_loss": 3.0, "eval_runtime": 1.0}, terminal=False).splitlines()
    assert lines == [LINE, LINE.replace("7.375", "7.375  evaluation loss 3")]


def test_other_figures_of_the_trainer_are_not_shown(show):
    assert show({"train_runtime": 3.0}, terminal=False) == f"{LINE}\n"


def test_on_a_terminal_there_is_a_bar_with_the_time_left_above_the_figures(show):
    bar, figures = drawn(show(terminal=True))[-2:]
    assert bar.endswith("2/42 1 min 20 s left")
    assert figures == FIGURES


def test_a_narrow_terminal_cuts_the_figures_and_not_the_time_left(show):
    bar, figures = drawn(show(terminal=True, width=70))[-2:]
    assert bar.endswith("2/42 1 min 20 s left")
    assert figures.startswith("loss 7.375  lr 1.00e-04  1,531 tokens/s  memory now")
    assert len(figures) == 70


def drawn(printed):
    """The lines that were drawn, over and over, without what moves the cursor."""
    lines = (re.sub(r"\x1b\[[\d?;]*[A-Za-z]", "", line).strip() for line in re.split(r"[\r\n]", printed))
    return [line for line in lines if line]


def test_what_is_not_known_is_not_shown():
    from trainer.loop.progress import Snapshot

    unknown = Snapshot(1, 2, None, None, None, None, None, None, None)
    assert unknown.figures() == ""
