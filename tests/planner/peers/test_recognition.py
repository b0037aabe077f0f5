from pathlib import Path

import pytest

from planner.peers.document import read_document
from planner.peers.recognition import find_format, recognize
from profiles.errors import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden" / "peers"
FILES = sorted(path for path in GOLDEN.iterdir() if path.suffix != ".md")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_real_file_is_known_by_its_keys(path):
    assert path.name.startswith(recognize(read_document(path).values))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model": "m", "method": "lora", "gpu": "T4"}, "fitune"),
        ({"model": "m", "data": {"local_dataset": ["a"]}, "training": {"batch_size": 2}}, "unsloth"),
        ({"output_dir": "out", "per_device_train_batch_size": 4, "bf16": True}, "transformers"),
        ({"model_name_or_path": "m", "output_dir": "out", "dataset_name": "d"}, "trl"),
        ({"model_name_or_path": "m", "output_dir": "out", "finetuning_type": "full"}, "llama-factory"),
        ({"services": {}, "volumes": {}}, None),
    ],
)
def test_the_format_with_the_most_known_keys_is_meant(values, expected):
    assert recognize(values) == expected


def test_a_file_of_no_known_format_is_told_what_there_is():
    with pytest.raises(ConfigError, match=r"compose.yaml is in no known format: services are keys of none") as error:
        find_format(None, {"services": {}}, Path("compose.yaml"))
    assert "axolotl, llama-factory, trl, unsloth, transformers" in error.value.hint


def test_a_declared_format_must_be_known():
    with pytest.raises(ConfigError, match="--format is axolot, which is not described"):
        find_format("axolot", {"base_model": "m"}, Path("a.yml"))
