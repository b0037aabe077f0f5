"""The fit finds what made-up machines are made of, keeps what it has no data for, and is what the shipped file says."""

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from calibration.fit import Evidence, as_toml, fit, gather, refusals
from calibration.fit import main as fit_main
from calibration.fitting.constants import unmeasured_table
from calibration.fitting.contexts import fit_contexts, seen_contexts
from calibration.fitting.judged_runs import RUNS, published_runs
from calibration.fitting.memory_errors import memory_errors
from calibration.fitting.slack_shares import fit_slack
from calibration.fitting.speed import FEWEST, NAMES, fit_efficiencies
from calibration.fitting.timed_steps import TimedStep, published_steps, recorded_steps
from calibration.measuring.grid import grid
from calibration.measuring.measurement import Attempt, Expected, Measurement
from calibration.truth.measured_runs import read_runs
from planner.memory.estimate import estimate
from planner.records.run_record import Measured, Prediction
from planner.speed.rates import speed_facts
from profiles.fitted import Constant, Efficiencies, Fitted, fitted
from profiles.gpu_catalog import find_gpu

H100, A100 = find_gpu("h100"), find_gpu("a100-80gb")
PUBLISHED = published_steps()


def machine(**shares):
    usual = {"product": 0.8, "attention": 0.6, "bandwidth": 0.75, "dequantization": 0.3, "launch_seconds": 18e-6}
    constants = {name: Constant(value=value, spread=0) for name, value in {**usual, **shares}.items()}
    return Efficiencies(gpu="any", dtype="any", error=0, error_left_out=0, runs=1, records=(), **constants)


def on(one: TimedStep, made_of: Efficiencies, **changes) -> TimedStep:
    """The step as a made-up machine would run it."""
    moved = replace(one, **changes)
    return replace(moved, tokens_per_second=moved.predicted(made_of))


def values(found: Efficiencies) -> dict[str, float]:
    return {name: getattr(found, name).value for name in NAMES}


def test_the_shipped_file_is_what_the_fit_finds_now():
    now = fit(gather([])).speed
    told = "run `python -m calibration.fit --write`"
    assert [(one.gpu, one.dtype) for one in now] == [(one.gpu, one.dtype) for one in fitted().speed], told
    for one, shipped in zip(now, fitted().speed, strict=True):
        assert values(one) == pytest.approx(values(shipped), rel=0.01), told
        assert (one.runs, one.records) == (shipped.runs, shipped.records), told


def test_the_file_reads_back():
    import tomllib

    assert Fitted.model_validate(tomllib.loads(as_toml(fitted()))) == fitted()


def test_a_made_up_machine_is_found_again():
    made_of = machine()
    (found,) = fit_efficiencies([on(one, made_of) for one in PUBLISHED])
    assert found.product.value == pytest.approx(0.8, rel=0.03)
    assert found.bandwidth.value == pytest.approx(0.75, rel=0.06)
    assert found.launch_seconds.value == pytest.approx(18e-6, rel=0.03)
    assert found.error < 0.01


def test_what_the_runs_do_not_tell_stays_what_was_known():
    plain = [one for one in PUBLISHED if one.method != "qlora"]
    (found,) = fit_efficiencies(plain)
    known = speed_facts().expected.dequantization
    assert found.dequantization.value == pytest.approx(known.value, rel=1e-3)
    assert found.dequantization.spread == pytest.approx(known.spread, rel=1e-2)


def test_a_share_is_never_above_one():
    (found,) = fit_efficiencies([replace(one, tokens_per_second=3 * one.tokens_per_second) for one in PUBLISHED])
    assert max(getattr(found, name).value for name in NAMES) <= 1


def test_a_card_with_enough_runs_gets_shares_of_its_own():
    slow = machine(product=0.55, bandwidth=0.55)
    steps = [*PUBLISHED, *(on(one, slow, gpu=H100, group=f"h {one.group}") for one in PUBLISHED)]
    of_all, *own = fit_efficiencies(steps)
    assert [(one.gpu, one.dtype) for one in own] == [(A100.name, "bfloat16"), (H100.name, "bfloat16")]
    assert own[1].product.value < own[0].product.value
    assert max(one.error for one in own) < of_all.error
    few = [*PUBLISHED, *(on(one, slow, gpu=H100) for one in PUBLISHED[: FEWEST - 1])]
    assert H100.name not in [one.gpu for one in fit_efficiencies(few)]


def test_one_absurd_family_shows_in_the_error_of_what_is_left_out():
    steps = [
        replace(one, tokens_per_second=one.tokens_per_second * (4 if one.group == "fms-lora" else 1))
        for one in PUBLISHED
    ]
    (found,) = fit_efficiencies(steps)
    assert found.error_left_out > 2 * fitted().efficiencies("any", "any").error_left_out


def measurement(planned, process=600, tokens_per_second=1000.0, outcome="ran"):
    memory = estimate(planned.point.model, planned.point.step, H100)
    measured = Measured(
        allocated_bytes=memory.allocated_bytes,
        reserved_bytes=memory.reserved_bytes,
        process_bytes=memory.reserved_bytes + (process << 20),
        tokens_per_second=tokens_per_second,
    )
    closed_form = Prediction.model_validate(planned.prediction.figures)
    return Measurement(
        time="2026-11-28T00:00:00+00:00",
        point=planned.point,
        expected=Expected(closed_form=closed_form, verdict="fits"),
        attempt=Attempt(outcome=outcome, measured=measured if outcome == "ran" else None),
    )


@pytest.fixture(scope="module")
def planned():
    return grid(H100, draws=40)


def test_the_context_is_the_most_that_was_seen_on_a_card(planned):
    found = [measurement(one, process) for one, process in zip(planned, (610, 590, 655), strict=False)]
    (context,) = fit_contexts({"h100.jsonl": found})
    assert (context.gpu, context.mib, context.least_mib, context.runs) == (H100.name, 655, 590, 3)
    assert context.records == ("h100.jsonl",)
    by_model = {}
    for one, mib in zip(planned, (610, 590, 655), strict=False):
        by_model[one.point.config.model] = max(mib, by_model.get(one.point.config.model, 0))
    lower, most = sorted(by_model.values())[-2:]
    assert context.above_left_out_mib == most - lower


def test_records_are_timed_steps_and_those_that_did_not_run_are_none(planned):
    found = [measurement(planned[0]), measurement(planned[1], outcome="out of memory")]
    (step,) = recorded_steps(found, "h100.jsonl")
    assert (step.gpu, step.tokens_per_second, step.record) == (H100, 1000.0, "h100.jsonl")
    assert math.isfinite(step.predicted())


def test_a_fit_without_records_says_what_it_has_no_data_for():
    evidence = gather([])
    said = " ".join(refusals(evidence, fit(evidence)))
    for words in ("published runs alone", "context is not fitted", "float16 or float32", "cuBLAS workspaces"):
        assert words in said


def test_a_fit_with_records_names_them(planned, tmp_path):
    path = tmp_path / "h100.jsonl"
    made_of = machine(product=0.5)
    lines = [
        measurement(one, tokens_per_second=recorded_steps([measurement(one)], "")[0].predicted(made_of))
        for one in planned
        if one.point.step.compute_dtype == "bfloat16"
    ]
    path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines[:20]))
    found = fit(gather([path]))
    assert found.context_mib(H100.name) == 600
    own = found.efficiencies(H100.name, "bfloat16")
    assert own.records == ("h100.jsonl",)
    assert own.product.value < fitted().efficiencies("any", "any").product.value


def test_the_command_prints_before_and_after_and_refuses_a_missing_file(tmp_path):
    import typer

    app = typer.Typer()
    app.command()(fit_main)
    printed = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert {line["gpu"] for line in printed["errors"]} == {A100.name}
    assert {"before", "after", "left_out"} <= printed["errors"][0].keys()
    missing = CliRunner().invoke(app, ["--records", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2
    assert "there is no file" in missing.stderr


def test_evidence_is_what_was_given():
    assert gather([]) == Evidence(tuple(PUBLISHED), {})


def test_the_slack_of_the_shipped_file_is_the_middle_of_the_runs():
    now = fit(gather([])).slack
    assert [one.kind for one in now] == [one.kind for one in fitted().slack]
    for one, shipped in zip(now, fitted().slack, strict=True):
        assert one.value == pytest.approx(shipped.value, abs=0.02), "run `python -m calibration.fit --write`"


def test_one_odd_run_does_not_move_the_slack():
    runs = published_runs(read_runs(RUNS))
    odd = next(one for one in runs if one.id == "SWD-018")
    absurd = replace(odd, reserved_bytes=10 * odd.reserved_bytes)
    [usual], [moved] = fit_slack(runs), fit_slack([*runs, absurd])
    assert moved.value == pytest.approx(usual.value, abs=usual.spread)


def test_the_slack_says_how_far_it_is_off_for_who_was_left_out_if_several_measured():
    for one in fit_slack(published_runs(read_runs(RUNS))):
        assert (one.error_left_out is None) == (len(one.records) == 1)
        assert one.error_left_out is None or one.error_left_out >= 0.9 * one.error > 0


def test_workspaces_and_slack_lessen_the_errors_also_for_cards_that_the_slack_was_not_fitted_on():
    *groups, everything = memory_errors(published_runs(read_runs(RUNS)))
    assert {(one.card, one.method) for one in groups} >= {("T4", "qlora"), ("A100-SXM4-80GB", "full")}
    assert sum(one.runs for one in groups) == everything.runs > 150
    assert everything.allocated_after < everything.allocated_before
    assert everything.reserved_after <= everything.reserved_left_out < 0.5 * everything.reserved_before


def test_a_slack_that_no_run_tells_is_none():
    runs = [one for one in published_runs(read_runs(RUNS)) if one.memory.binding_phase != "step"]
    assert fit_slack(runs) == ()


def test_what_was_seen_of_a_context_is_planned_for():
    lines = list(seen_contexts())
    assert len(lines) > 10
    assert all(one.seen.mib[0] <= one.seen.mib[1] <= one.planned_mib for one in lines)


def test_the_table_of_what_nobody_measured_is_what_the_data_files_say():
    table = unmeasured_table()
    for words in ("host_link", "100 Gbit/s", "unmeasured: L40S", "Pascal"):
        assert words in table
