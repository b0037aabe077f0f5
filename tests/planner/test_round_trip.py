"""What `plan` writes, `estimate` accepts with the same figures, and `launch` turns into a command."""

from pathlib import Path

import pytest

from planner.config.run_file import read_run_file, write_run_file
from planner.predict.prediction import Target, predict
from planner.search.planning import make_plan
from planner.search.request import Request
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile
from profiles.model_catalog import all_models, resolve_model
from trainer.launch import training_command

CARDS = ("t4", "v100-16gb", "a100-40gb", "h100")


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.hf_id)
def test_a_plan_is_read_estimated_and_started_as_it_was_made(model: ModelProfile, card: str, tmp_path: Path):
    gpu = find_gpu(card)
    try:
        plan = make_plan(Request(model=model, gpu=gpu, model_name=model.hf_id))
    except UnsupportedError as refusal:
        pytest.skip(refusal.message)
    if plan.config is None:
        assert plan.verdict == "no"
        assert plan.nearest or plan.shortfall
        return
    run_file = tmp_path / "run.yaml"
    write_run_file(plan.config, run_file)
    config = read_run_file(run_file)
    target = Target(resolve_model(config.model).profile, find_gpu(config.gpu))
    prediction = predict(config, target)
    assert config == plan.config
    assert prediction.verdict == plan.verdict
    assert prediction.estimate.phases == plan.estimate.phases
    assert prediction.estimate.interval_bytes == plan.estimate.interval_bytes
    assert str(run_file) in str(training_command(config, run_file))
