"""The table of verdicts at the edge, from records and by simulation."""

import json
from dataclasses import replace

import pytest

from calibration import edge
from calibration.edge import Edge, main, measured_edges, print_edges, shipped_edges
from calibration.measuring.grid import edge_points, planned, tiny_model
from calibration.measuring.measurement import Attempt, Expected, Measurement, append_measurement, record_file
from planner.config.run_config import LoraKnobs, RunConfig
from planner.records.run_record import Prediction
from planner.units import MIB
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

H100 = find_gpu("h100")
CONFIG = RunConfig(model="tiny", gpu=H100.name, lora=LoraKnobs(r=8), per_device_train_batch_size=4, max_steps=2)


@pytest.fixture(scope="module")
def points():
    """Three lengths around what is said to fit 900 MiB, most of which the context takes."""
    return edge_points(tiny_model(), CONFIG, H100, 900 * MIB)


def measurement(planned, outcome):
    return Measurement(
        time="2026-11-28T00:00:00+00:00",
        point=planned.point,
        expected=Expected(
            closed_form=Prediction.model_validate(planned.prediction.figures), verdict=planned.prediction.verdict
        ),
        attempt=Attempt(outcome=outcome),
    )


def test_points_lie_on_both_sides_of_the_limit(points):
    assert [one.prediction.verdict for one in points][:: len(points) - 1] == ["fits", "no"]


def test_records_say_what_ran_and_failures_of_other_kinds_say_nothing(points):
    outcomes = ("ran", "out of memory", "failed")
    found = measured_edges([measurement(points[0], outcome) for outcome in outcomes])
    assert [(one.said, one.ran) for one in found] == [("fits", True), ("fits", False)]


def test_a_run_that_was_said_to_fit_and_did_not_is_an_exit_code(points, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    with record_file(path) as file:
        append_measurement(measurement(points[0], "ran"), file)
        append_measurement(measurement(points[-1], "out of memory"), file)
    assert main(["--records", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["by"] == "measurement"
    assert document["verdicts"]["fits"] == {"ran": 1, "out_of_memory": 0}
    with record_file(path) as file:
        append_measurement(measurement(points[0], "out of memory"), file)
    assert main(["--records", str(path)]) == 1


def test_the_table_counts_what_came_true(capsys):
    longer = CONFIG.model_copy(update={"max_length": 640})
    edges = [Edge(900 * MIB, CONFIG, 880 * MIB, "fits", True), Edge(900 * MIB, longer, 910 * MIB, "no", False)]
    print_edges(edges, H100, as_json=False)
    out = " ".join(capsys.readouterr().out.split())
    assert "said fits: 1 of 1 ran said tight: 0 of 0 ran said no: 0 of 1 ran" in out
    assert "no card was asked" in out


def test_of_the_shipped_points_those_called_fits_ran_and_lie_at_both_sides_of_each_edge():
    _, edges = shipped_edges()
    told = "run `python -m calibration.edge --gpu h100 --json` for calibration/records/edge-simulated.json"
    assert all(one.ran for one in edges if one.said == "fits"), told
    for said in ("fits", "no"):
        assert sum(one.said == said for one in edges) >= 0.25 * len(edges) >= 6, told
    for one in edges:
        share = one.process_bytes / one.cap_bytes
        assert (0.95 if one.said == "no" else 0.75) < share < 1.3, told


@pytest.mark.slow
def test_a_shipped_point_runs_in_the_simulation_of_now_as_it_did():
    document = json.loads(edge.SIMULATED.read_text())
    smallest = min(document["edges"], key=lambda row: row["process_bytes"])
    config = RunConfig.model_validate(smallest["config"])
    point = planned(find_model(config.model), config, H100, smallest["cap_bytes"])
    assert edge.runs_in_simulation(point, H100) == smallest["ran"]


@pytest.mark.parametrize("argv", [[], ["--gpu", "h100", "--records", "x"]], ids=["neither", "both"])
def test_it_wants_records_or_a_card(argv, capsys):
    assert main(argv) == 2
    assert "name --records of a card, or a --gpu to simulate" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_said_to_fit_runs_in_the_simulation_and_in_far_less_it_does_not(points, monkeypatch, capsys):
    room = points[0].point.allocator_limit_bytes
    asked = [
        replace(points[0], point=points[0].point.model_copy(update={"allocator_limit_bytes": limit}))
        for limit in (room, room // 2)
    ]
    monkeypatch.setattr(edge, "capped_grid", lambda *_: asked)
    assert main(["--gpu", "h100", "--json"]) == 1
    assert [one["ran"] for one in json.loads(capsys.readouterr().out)["edges"]] == [True, False]
