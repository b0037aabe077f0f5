"""The ranges of the closed form are those that measured runs make now, and hold for runs that they were not made of."""

import pytest

from calibration.measuring.grid import grid
from calibration.measuring.measurement import Attempt, Expected, Measurement
from calibration.residuals import GROUPINGS, as_toml, coverage, fitted, now_fitted, student_t
from planner.memory.estimate import estimate
from planner.memory.verdict import verdict
from planner.records.run_record import Measured, Prediction
from profiles.gpu_catalog import find_gpu
from profiles.residuals import Residuals, residuals


@pytest.fixture(scope="module")
def now():
    return now_fitted()


def test_the_file_is_what_the_formulas_leave_now(now):
    _, found = now
    told = "run `python -m calibration.residuals --write`"
    shipped = residuals()
    assert [spread.method for spread in found.spreads] == [spread.method for spread in shipped.spreads], told
    for one, other in zip(found.spreads, shipped.spreads, strict=True):
        assert one.high == pytest.approx(other.high, abs=0.03), told
        assert (one.runs, one.groups) == (other.runs, other.groups), told
    assert found.unmeasured == pytest.approx(shipped.unmeasured, abs=0.03), told
    assert found.cards == shipped.cards, told


def test_the_file_reads_back():
    import tomllib

    assert Residuals.model_validate(tomllib.loads(as_toml(residuals()))) == residuals()


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_runs_that_the_ranges_were_not_made_of_had_room_where_they_are_called_fits(now, grouping):
    runs, _ = now
    *_, everything = coverage(runs, GROUPINGS[grouping])
    assert everything.called_fits > 400
    assert everything.had_room >= 0.99 * everything.called_fits
    assert everything.had_none >= 0.95 * everything.called_no > 0
    assert everything.below > 0.9


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_no_run_that_ran_out_of_memory_is_called_fits(now, grouping):
    runs, _ = now
    *_, everything = coverage(runs, GROUPINGS[grouping])
    assert everything.out_of_memory["fits"] == 0
    assert sum(everything.out_of_memory.values()) > 15


def test_no_run_that_ran_is_called_no(now):
    runs, _ = now
    said = [verdict(one.memory, one.gpu.memory_bytes) for one in runs if one.ran]
    assert "no" not in said


def test_a_range_reaches_at_least_to_the_most_that_was_seen(now):
    runs, found = now
    for one in runs:
        if one.share is not None and one.exact and one.num_gpus == 1:
            assert one.share <= found.spread(one.method, one.attention).high + 1e-3


def test_fewer_runs_make_a_wider_range(now):
    runs, _ = now
    alike = [one for one in runs if one.method == "qlora" and one.attention == "fused" and one.share is not None]
    middle = sorted(alike, key=lambda one: one.share)[len(alike) // 2 - 6 : len(alike) // 2 + 6]
    few = sorted(middle, key=lambda one: one.share)[::5]
    high_of = {len(runs): fitted(runs).spread("any", "fused").high for runs in (few, middle)}
    spread_of_few = max(one.share for one in few) - min(one.share for one in few)
    assert high_of[len(few)] > high_of[len(middle)] or spread_of_few == 0


def test_records_of_a_card_are_taken_up_but_not_those_within_a_cap_or_of_other_trainers(tmp_path):
    h100 = find_gpu("h100")
    plans = [one for one in grid(h100, draws=60) if one.point.config.method == "lora"][:4]
    lines = [record(one.point, h100) for one in plans]
    point = lines[0].point
    capped = point.model_copy(update={"cap_bytes": 2**34})
    theirs = point.model_copy(update={"trainer": "trl"})
    lines += [lines[0].model_copy(update={"point": other}) for other in (capped, theirs)]
    path = tmp_path / "h100.jsonl"
    path.write_text("".join(f"{line.model_dump_json()}\n" for line in lines))
    _, found = now_fitted([path])
    assert found.evidence(h100, "lora").words == "4 lora runs measured on this card"
    assert "h100.jsonl" in found.source
    assert "h100.jsonl" in found.spread("any", "fused").groups + found.spread("any", "eager").groups


def record(point, gpu):
    memory = estimate(point.model, point.step, gpu)
    measured = Measured(allocated_bytes=memory.allocated_bytes, reserved_bytes=memory.reserved_bytes)
    closed_form = Prediction(allocated_bytes=memory.allocated_bytes)
    return Measurement(
        time="2026-11-28T00:00:00+00:00",
        point=point,
        expected=Expected(closed_form=closed_form, verdict="fits"),
        attempt=Attempt(outcome="ran", measured=measured),
    )


@pytest.mark.parametrize(("freedom", "table"), [(3, 4.541), (5, 3.365), (10, 2.764), (30, 2.457), (1000, 2.330)])
def test_students_t_is_that_of_the_tables(freedom, table):
    assert student_t(0.99, freedom) == pytest.approx(table, rel=0.01)
