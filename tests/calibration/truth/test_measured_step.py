import pytest

from calibration.truth.measured_runs import read_runs
from calibration.truth.measured_step import question
from calibration.truth.peft_rows import LONGEST_BATCH_TOKENS
from profiles.errors import UnsupportedError
from tests.calibration.test_compare import TRUTH

RUNS = {run.id: run for run in read_runs(TRUTH)}


def test_a_run_of_the_method_comparison_has_a_padded_batch_and_its_own_adapter():
    _, step, gpu = question(RUNS["PEFT-022"])
    assert (step.seq_len, step.masked, step.attention, step.checkpointing) == (
        LONGEST_BATCH_TOKENS, True, "efficient", False,
    )  # fmt: skip
    assert (step.adapter.peft_type, gpu.name) == ("IA3", "L40S")


def test_full_fine_tuning_of_the_method_comparison_has_no_adapter():
    assert question(RUNS["PEFT-015"])[1].adapter is None


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ("PEFT-031", "optimizer lora-fa"),
        ("PEFT-064", "evaluation that generates text"),
        ("SWD-015", "how lengths vary"),
    ],
)
def test_what_a_row_does_not_state_is_refused_with_the_reason(run, why):
    with pytest.raises(UnsupportedError, match=why):
        question(RUNS[run])
