from dataclasses import fields

from calibration.truth.measured_runs import read_runs
from calibration.truth.measured_step import question
from calibration.truth.version_traits import traits
from planner.step.step_spec import StepSpec
from profiles.model_catalog import find_model
from tests.calibration.test_compare import TRUTH

RUNS = {run.id: run for run in read_runs(TRUTH)}


def test_each_trait_holds_for_a_run_and_sets_fields_of_the_step():
    known = {field.name for field in fields(StepSpec)}
    single = [run for run in RUNS.values() if run.num_gpus == 1 and not run.model.startswith("OpenBuddy")]
    for trait in traits():
        assert any(trait.holds(run, find_model(run.model)) for run in single), trait
        assert trait.set.keys() <= known
        assert trait.source


def test_trl_leaves_only_norms_in_float32_after_the_kbit_preparation():
    _, step, _ = question(RUNS["FMS-031"])
    assert (step.kbit_upcast, step.float32_norms, step.base_dtype) == (False, True, "bfloat16")
    _, step, _ = question(RUNS["FIT-004"])
    assert (step.kbit_upcast, step.float32_norms) == (True, False)


def test_a_later_trait_wins():
    _, step, _ = question(RUNS["FMS-042"])
    assert step.upcast_in_model
    _, step, _ = question(RUNS["FMS-003"])
    assert not step.upcast_in_model


def test_rows_of_new_libraries_have_none():
    model = find_model(RUNS["FIT-017"].model)
    assert not any(trait.holds(RUNS["FIT-017"], model) for trait in traits())
