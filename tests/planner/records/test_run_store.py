import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from planner.records.run_store import StoreError, recall, remember, store_path
from tests.planner.run_records import LORA, made_up_run

ROOT = Path(__file__).parents[3]


def test_what_was_remembered_is_recalled_in_the_order_of_its_time(tmp_path):
    runs = [made_up_run(number, folder=f"runs/{number}") for number in (2, 1, 3)]
    assert remember(runs, tmp_path / "data" / "runs.db") == 3
    assert recall(tmp_path / "data" / "runs.db") == sorted(runs, key=lambda run: run.record.time)


def test_the_same_run_is_kept_once(tmp_path):
    path = tmp_path / "runs.db"
    assert [remember([made_up_run(1)], path) for _ in range(2)] == [1, 0]
    assert len(recall(path)) == 1


def test_only_the_newest_of_each_method_are_recalled_if_asked(tmp_path):
    full = LORA.model_validate(LORA.model_dump() | {"method": "full", "lora": None, "dtype": "float32"})
    remember([made_up_run(n) for n in range(5)] + [made_up_run(9, config=full)], tmp_path / "runs.db")
    assert [run.record.time[-8:-6] for run in recall(tmp_path / "runs.db", newest=2)] == ["03", "04", "09"]


def test_two_processes_that_write_at_once_lose_nothing(tmp_path):
    script = (
        "import sys; from pathlib import Path; from planner.records.run_store import remember;"
        "from tests.planner.run_records import made_up_run\n"
        "for number in range(25): remember([made_up_run(number, memory=float(sys.argv[2]))], Path(sys.argv[1]))"
    )
    path = tmp_path / "runs.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), factor], cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
        for factor in ("1.0", "1.1")
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert len(recall(path)) == 50


def test_a_damaged_store_is_told_when_read_and_set_aside_when_written(tmp_path):
    path = tmp_path / "runs.db"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(StoreError, match=r"cannot be read: file is not a database") as caught:
        recall(path)
    assert caught.value.hint == "the next run puts it aside as runs.db.damaged"
    assert remember([made_up_run()], path) == 1
    assert len(recall(path)) == 1
    assert (tmp_path / "runs.db.damaged").read_bytes().startswith(b"no database")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store_is_read_and_not_written(tmp_path):
    path = tmp_path / "runs.db"
    remember([made_up_run()], path)
    for each, mode in ((path, 0o400), (tmp_path, 0o500)):
        each.chmod(mode)
    assert len(recall(path)) == 1
    with pytest.raises(StoreError, match="cannot be written"):
        remember([made_up_run(1)], path)
    tmp_path.chmod(0o700)


def test_a_store_below_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="cannot be written"):
        remember([made_up_run()], tmp_path / "file" / "runs.db")


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "runs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="update fitune"):
        remember([made_up_run()], path)
    with pytest.raises(StoreError, match="update fitune"):
        recall(path)


def test_a_row_that_this_version_cannot_read_is_left_out(tmp_path):
    path = tmp_path / "runs.db"
    remember([made_up_run(1), made_up_run(2)], path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE runs SET record = '{}' WHERE time LIKE '%:01+%'")
    connection.close()
    assert len(recall(path)) == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FITUNE_STORE": "/data/mine.db"}, Path("/data/mine.db")),
        ({"FITUNE_STORE": ""}, None),
        ({"XDG_DATA_HOME": "/xdg"}, Path("/xdg/fitune/runs.db")),
        ({"HOME": "/home/me"}, Path("/home/me/.local/share/fitune/runs.db")),
    ],
    ids=["named", "none", "xdg", "home"],
)
def test_the_store_is_where_the_user_says_or_in_the_data_folder(monkeypatch, variables, expected):
    for name in ("FITUNE_STORE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert store_path() == expected


def test_runs_of_others_stand_in_only_where_there_are_too_few_of_this_machine(tmp_path):
    own, foreign = (
        [made_up_run(n, origin=origin) for n in days] for origin, days in (("own", (1, 2)), ("imported", (5, 6, 7)))
    )
    remember([*own, *foreign], tmp_path / "runs.db")
    origins = [run.origin for run in recall(tmp_path / "runs.db", newest=3)]
    assert sorted(origins) == ["imported", "own", "own"]
