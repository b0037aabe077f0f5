import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from profiles.architecture_traits import known_model_types
from profiles.build_architecture import architecture
from profiles.errors import UnknownModelError
from profiles.model import ModelProfile
from profiles.model_catalog import (
    REFERENCE_SIZES_FILE,
    REFERENCE_TOLERANCE,
    all_models,
    find_model,
    reference_shape,
    resolve_model,
)
from profiles.parameter_counts import parameter_counts

REFERENCE_SIZES = tomllib.loads(REFERENCE_SIZES_FILE.read_text())["sizes"]
GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "golden" / "model_parameters.jsonl").read_text().splitlines()
]


def by_id(model: ModelProfile) -> str:
    return model.hf_id


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["hf_id"])
def test_parameter_count_is_the_golden_one(row):
    assert parameter_counts(architecture(find_model(row["hf_id"]))).total == row["total"]


def test_every_model_has_a_golden_count():
    assert {row["hf_id"] for row in GOLDEN} == {model.hf_id for model in all_models()}


@pytest.mark.parametrize("model", all_models(), ids=by_id)
def test_published_count_is_the_count_of_the_architecture(model):
    if model.num_parameters_published is not None:
        assert parameter_counts(architecture(model)).total == model.num_parameters_published
        assert model.num_parameters_source


@pytest.mark.parametrize("model", all_models(), ids=by_id)
def test_every_row_names_its_sources_and_is_in_range(model):
    assert all(len(source) > 10 for source in model.sources)
    assert set(model.unconfirmed) <= set(ModelProfile.model_fields)
    assert model.model_type in known_model_types()
    assert 64 <= model.hidden_size <= 20_000
    assert 2 <= model.num_hidden_layers <= 150
    assert 1_000 <= model.vocab_size <= 300_000


@pytest.mark.parametrize("model", all_models(), ids=by_id)
def test_every_name_of_a_model_finds_it(model):
    for name in (model.hf_id, model.hf_id.upper(), model.hf_id.rpartition("/")[2], *model.aliases):
        assert find_model(name) == model


def test_no_two_models_share_a_name():
    names = Counter()
    for model in all_models():
        full = {name.casefold() for name in (model.hf_id, *model.aliases)}
        names.update(full | {name.rpartition("/")[2] for name in full})
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("size", REFERENCE_SIZES)
def test_bare_size_is_the_model_of_the_table(size):
    assert find_model(size).hf_id == REFERENCE_SIZES[size]["model"]


@pytest.mark.parametrize(
    ("size", "hf_id"),
    [
        ("7B", "meta-llama/Llama-2-7b-hf"),
        ("13b", "meta-llama/Llama-2-13b-hf"),
        ("33b", "huggyllama/llama-30b"),
        ("65b", "huggyllama/llama-65b"),
        ("70b", "meta-llama/Llama-2-70b-hf"),
        ("9.5b", "google/gemma-2-9b"),
    ],
)
def test_bare_size_in_any_spelling_finds_the_reference_shape(size, hf_id):
    assert find_model(size).hf_id == hf_id


def test_unlisted_size_takes_a_shape_within_the_tolerance():
    shape = reference_shape("6.9b")
    count = parameter_counts(architecture(find_model(shape.hf_id))).total
    assert abs(count / 6.9e9 - 1) <= REFERENCE_TOLERANCE


def test_size_far_from_every_shape_is_refused_with_the_nearest():
    with pytest.raises(UnknownModelError, match=r"no reference shape is within 10% of 50b; the nearest is 65b"):
        find_model("50b")


def test_misspelled_name_is_answered_with_the_nearest_names():
    with pytest.raises(UnknownModelError, match=r"near it are qwen2\.5-7b-instruct"):
        find_model("qwen2.5-7b-instrct")


def test_unknown_name_points_to_the_list_of_models():
    with pytest.raises(UnknownModelError, match="no model is called 'xyzzy'") as caught:
        find_model("xyzzy")
    assert caught.value.hint.startswith("`fitune models` lists all names; a Hub id")


def test_answer_for_a_bare_size_says_which_shape_was_used():
    resolved = resolve_model("7b")
    assert (resolved.origin, resolved.reference.hf_id) == ("catalog", "meta-llama/Llama-2-7b-hf")
    assert resolved.reference.why


def test_answer_for_a_named_model_has_no_reference_shape():
    resolved = resolve_model("mistralai/Mistral-7B-v0.1")
    assert (resolved.origin, resolved.reference) == ("catalog", None)


def test_heads_must_be_a_multiple_of_key_value_heads():
    with pytest.raises(ValidationError, match="num_attention_heads is 32, not a multiple of num_key_value_heads 5"):
        ModelProfile.model_validate(find_model("7b").model_dump() | {"num_key_value_heads": 5})


def test_layer_types_must_name_every_layer():
    with pytest.raises(ValidationError, match="layer_types has 1 entries for 32 layers"):
        ModelProfile.model_validate(find_model("7b").model_dump() | {"layer_types": ("full_attention",)})


def test_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="hiden_size"):
        ModelProfile.model_validate(find_model("7b").model_dump() | {"hiden_size": 1})


def test_finding_a_model_imports_neither_torch_nor_the_hub_library():
    code = (
        "import sys; from profiles.model_catalog import resolve_model; resolve_model('7b');"
        "print(sorted({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
