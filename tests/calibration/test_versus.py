"""What is compared with plain TRL and Transformers, and how it is told; `test_measure.py` runs them on a CPU."""

import json

import pytest

from calibration import versus
from calibration.measuring.grid import planned, tiny_model
from calibration.measuring.measurement import Attempt, Expected, Measurement
from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from planner.records.run_record import Measured, Prediction
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import find_gpu


def test_ours_and_theirs_follow_each_other_at_the_same_configuration():
    found = versus.pairs(find_gpu("h100"))
    for ours, theirs in found:
        assert (ours.point.trainer, ours.point.config) == ("fitune", theirs.point.config)
        assert versus.LOSS_OF[theirs.point.trainer] == theirs.point.config.loss
    assert len(found) == len(versus.QUESTIONS) * len(versus.LOSS_OF)


def made_up(planned, tokens_per_second, peak):
    return Measurement(
        time="2026-11-28T00:00:00+00:00",
        point=planned.point,
        expected=Expected(closed_form=Prediction.model_validate(planned.prediction.figures), verdict=None),
        attempt=Attempt(outcome="ran", measured=Measured(allocated_bytes=peak, tokens_per_second=tokens_per_second)),
    )


def test_ratios_are_ours_over_theirs(capsys):
    ours, theirs = versus.pairs(None)[0]
    (duel,) = versus.duels([(ours, theirs)], [made_up(ours, 300.0, 80), made_up(theirs, 200.0, 100)])
    assert (duel.speed_ratio, duel.memory_ratio) == pytest.approx((1.5, 0.8))
    versus.print_duels([duel], as_json=False)
    assert {"trl", "1.50", "0.800"} <= set(capsys.readouterr().out.split())
    versus.print_duels([duel], as_json=True)
    assert json.loads(capsys.readouterr().out)["duels"][0]["speed_ratio"] == pytest.approx(1.5)


def test_a_run_that_has_no_rival_is_no_duel():
    ours, theirs = versus.pairs(None)[0]
    assert versus.duels([(ours, theirs)], [made_up(ours, 300.0, 80)]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("knobs", "why"),
    [
        ({"checkpoint_offload": True}, "is not told to offload"),
        ({"objective": "dpo"}, "only supervised runs"),
    ],
    ids=["offload", "dpo"],
)
def test_what_only_this_trainer_does_is_not_asked_of_another(knobs, why):
    from calibration.measuring.contenders import contending_trainer

    config = RunConfig.model_validate(
        {"model": "tiny", "lora": LoraKnobs(), "dtype": "float32", "mixed_precision": "no", "data": DataKnobs(path="x")}
        | knobs
    )
    with pytest.raises(UnsupportedError, match=why):
        contending_trainer("trl", config, base=None)


def test_a_point_of_another_trainer_is_another_point():
    config = RunConfig(model="tiny", lora=LoraKnobs(), dtype="float32", mixed_precision="no", max_length=64)
    ours, theirs = (planned(tiny_model(), config, None, trainer=who) for who in ("fitune", "trl"))
    assert ours.point.id != theirs.point.id
