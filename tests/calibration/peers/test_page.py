"""The tables about other trainers are those of now, and their keys are those of the releases that they name."""

import pytest
import yaml

from calibration.peers.environment import ask_schema, peer_environment
from calibration.peers.page import FILE_CARD, FILES, PAGE, READ, VALIDATED, between, read_block, validated_table
from planner.peers.check import check_file, peer_of
from planner.peers.peer import PEERS
from profiles.errors import EnvironmentFault


@pytest.fixture(scope="module")
def peers():
    try:
        return peer_environment()
    except EnvironmentFault as fault:
        pytest.skip(f"{fault.message}, so nothing is held to the peers' own schemas")


def test_the_tables_of_keys_and_files_are_those_of_now():
    assert between(PAGE.read_text("utf-8"), READ) == read_block(), "run `python -m calibration.peers.page`"


@pytest.mark.slow
def test_the_table_of_round_trips_and_validations_is_that_of_now(peers):
    assert between(PAGE.read_text("utf-8"), VALIDATED) == validated_table(), "run `python -m calibration.peers.page`"


def test_each_run_that_is_written_comes_back_and_is_accepted():
    rows = between(PAGE.read_text("utf-8"), VALIDATED).splitlines()[2:]
    assert len(rows) == 4
    for row in rows:
        _, _, _, runs, refused, written, same_step, accepted, _ = row.split("|")
        assert int(written) == int(same_step) == int(accepted) == int(runs) - int(refused)


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS)
def test_each_key_of_the_schema_is_accounted_for(peer, peers):
    keys = ask_schema(peer, ["--keys"], peers)
    assert len(keys) > 30
    assert [key for key in keys if PEERS[peer].keys.reason(key) is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("peer", ["axolotl", "llama-factory"])
def test_the_peers_accept_a_fixed_file_as_they_accept_the_file(peer, peers, tmp_path):
    pairs = []
    for path in FILES.glob(f"{peer}-*"):
        answer = check_file(*peer_of(path), gpu=FILE_CARD)
        if answer.fix is None:
            continue
        pair = tmp_path / path.name, tmp_path / f"fixed-{path.name}"
        for copy, document in zip(pair, (answer.file.document, answer.fix.document), strict=True):
            # DeepSpeed's file of the examples is not here.
            copy.write_text(
                yaml.safe_dump({key: value for key, value in document.values.items() if key != "deepspeed"})
            )
        pairs.append(tuple(map(str, pair)))
    said = ask_schema(peer, [path for pair in pairs for path in pair], peers)
    assert len(pairs) >= 2
    assert [said[fixed] for _, fixed in pairs] == [said[path] for path, _ in pairs]


@pytest.mark.slow
def test_a_key_that_the_schema_does_not_have_is_told(peers, tmp_path):
    path = tmp_path / "axolotl.yaml"
    text = "base_model: a\nlearning_rate: 1e-4\nmicro_batch_size: 1\ndatasets:\n- {path: a.jsonl, type: alpaca}\n"
    path.write_text(text + "micro_batchsize: 2\n")
    (answer,) = ask_schema("axolotl", [str(path)], peers).values()
    assert answer == "keys that the schema does not have: micro_batchsize"
