import pytest

from calibration.allocator.caching import Settings
from calibration.allocator.loading import with_loading
from calibration.allocator.replay import replay
from calibration.trace.harness import harness_of
from calibration.truth.error_table import IN_A_RACE, IN_ORDER, Comparison, by_loading, within_race
from calibration.truth.loading_race import races, reserved_range
from calibration.truth.measured_runs import read_runs
from calibration.truth.prediction import Prediction
from planner.units import MIB
from tests.calibration.allocator.test_loading import MODEL, QLORA
from tests.calibration.test_compare import TRUTH

RUNS = {run.id: run for run in read_runs(TRUTH)}


def test_the_range_holds_what_is_reserved_one_weight_after_the_other():
    least, most = reserved_range(MODEL, QLORA, harness_of("FIT-047"))
    in_order = replay(with_loading(MODEL, QLORA), Settings()).peak.reserved
    assert least <= in_order < most


def test_only_quantized_runs_of_the_version_with_threads_race():
    assert races(RUNS["FIT-047"])
    assert not races(RUNS["FIT-050"])  # the same version, not quantized
    assert not races(RUNS["FIT-025"])  # quantized, a later version


@pytest.mark.parametrize(
    ("reserved_range", "inside"), [((4000 * MIB, 5000 * MIB), True), ((1, 2), False), (None, False)]
)
def test_a_measured_run_is_held_to_the_range(reserved_range, inside):
    run = RUNS["FIT-047"]  # reserved 4,820 MiB
    prediction = Prediction(0, 4500 * MIB, "fits", reserved_range)
    assert within_race(Comparison(run, prediction)) is inside


def test_runs_are_told_apart_by_how_they_were_loaded():
    made = [Comparison(RUNS[id_], Prediction(0, 0, "fits")) for id_ in ("FIT-047", "FIT-050", "FMS-031", "PEFT-003")]
    groups = {name: [one.run.id for one in found] for name, found in by_loading(made).items()}
    assert groups == {IN_A_RACE: ["FIT-047"], IN_ORDER: ["FIT-050"], "all": ["FIT-047", "FIT-050"]}
