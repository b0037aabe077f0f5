import json
import pickle

import pytest
from torch.cuda import _memory_viz

from calibration.allocator.stream import Allocation, Stream
from calibration.trace.__main__ import as_data, as_snapshot, main

pytestmark = pytest.mark.slow


@pytest.fixture
def stream() -> Stream:
    """A weight that stays, and a temporary that goes."""
    made = Stream()
    made.begin("load")
    made.allocate(Allocation(1024, "w", "model.layer", "load", "weight"))
    made.begin("forward")
    made.free(made.allocate(Allocation(512, "mm", "model.layer", "forward", "temporary")))
    return made


def test_torch_reads_the_snapshot(stream):
    snapshot = as_snapshot(stream)
    assert [entry["action"] for entry in snapshot["device_traces"][0]] == [
        *("alloc", "alloc"),
        *("free_requested", "free_completed"),
    ]
    assert "4 entries" in _memory_viz.trace(snapshot)
    assert "<script" in _memory_viz.trace_plot(snapshot)


def test_plain_data_holds_all_events(stream):
    assert as_data(stream)["events"] == [0, 1, ~1]
    assert as_data(stream)["phases"] == [(0, "load"), (1, "forward")]
    assert as_data(stream)["allocations"][0]["name"] == "w"


def test_a_step_is_written_in_both_formats(tmp_path):
    for name in ("step.json", "step.pickle"):
        main("SmolLM2-135M", tmp_path / name, "t4", ["max_length=128"])
    data = json.loads((tmp_path / "step.json").read_text())
    (history,) = pickle.loads((tmp_path / "step.pickle").read_bytes())["device_traces"]  # noqa: S301  # ours
    assert len([entry for entry in history if entry["action"] == "alloc"]) == len(data["allocations"])


def test_another_format_is_refused(tmp_path, capsys):
    with pytest.raises(Exception, match="2"):
        main("SmolLM2-135M", tmp_path / "step.txt", "t4")
    assert "neither a .pickle nor a .json" in capsys.readouterr().err
