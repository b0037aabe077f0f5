import json
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from profiles import hub
from profiles.build_architecture import architecture
from profiles.errors import InputError, UnknownModelError, UnsupportedError
from profiles.hub import read_hub_model, read_model_folder
from profiles.model_catalog import find_model, resolve_model
from profiles.parameter_counts import parameter_counts

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
LLAMA3_8B_PARAMETERS = 8_030_261_248


@pytest.fixture
def folder(tmp_path):
    def write(config) -> object:
        text = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(text)
        return tmp_path

    return write


def changed(**fields: object) -> dict[str, object]:
    return {key: value for key, value in (LLAMA | fields).items() if value is not None}


def test_folder_with_a_config_is_a_model(folder):
    profile = read_model_folder(folder(LLAMA))
    assert parameter_counts(architecture(profile)).total == LLAMA3_8B_PARAMETERS
    assert profile.sources == (str(folder(LLAMA) / "config.json"),)


def test_folder_is_resolved_before_the_catalog(folder):
    path = folder(LLAMA)
    resolved = resolve_model(str(path))
    assert (resolved.origin, resolved.profile.hf_id) == ("folder", str(path))


def test_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(UnknownModelError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_dtype_is_read_under_its_old_and_its_new_name(folder, key):
    config = changed(torch_dtype=None) | {key: "torch.float16"}
    assert read_model_folder(folder(config)).torch_dtype == "float16"


def test_names_of_the_type_are_translated(folder):
    config = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
        "vocab_size": 50257,
    }
    assert architecture(read_model_folder(folder(config))) == architecture(find_model("gpt2"))


def test_partial_rotation_is_read_from_rope_parameters(folder):
    config = changed(model_type="phi", rope_parameters={"partial_rotary_factor": 0.25})
    assert architecture(read_model_folder(folder(config))).blocks[0].attention.rotary_dim == 32


def test_qwen2_does_not_slide_unless_it_is_told_to(folder):
    config = changed(model_type="qwen2", sliding_window=4096, max_window_layers=28)
    assert read_model_folder(folder(config)).sliding_window is None


def test_qwen2_slides_from_max_window_layers_on(folder):
    config = changed(model_type="qwen2", sliding_window=4096, max_window_layers=28, use_sliding_window=True)
    blocks = architecture(read_model_folder(folder(config))).blocks
    assert [(block.attention.window, block.count) for block in blocks] == [(None, 28), (4096, 4)]


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_number_of_experts_is_read_under_both_names(folder, key):
    config = changed(model_type="mixtral", num_experts_per_tok=2) | {key: 8}
    assert read_model_folder(folder(config)).num_experts == 8


def test_original_t5_has_a_plain_mlp_and_a_tied_head(folder):
    config = {
        "model_type": "t5",
        "d_model": 512,
        "d_ff": 2048,
        "d_kv": 64,
        "num_heads": 8,
        "num_layers": 6,
        "vocab_size": 32128,
        "feed_forward_proj": "relu",
    }
    # T5-Small's parameters as published in the T5 presets of KerasNLP.
    assert parameter_counts(architecture(read_model_folder(folder(config)))).total == 60_506_624


def test_multi_query_falcon_has_one_key_value_head_whatever_its_config_says(folder):
    config = {
        "model_type": "falcon",
        "hidden_size": 4544,
        "num_hidden_layers": 32,
        "num_attention_heads": 71,
        "num_kv_heads": 71,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "vocab_size": 65024,
    }
    assert architecture(read_model_folder(folder(config))) == architecture(find_model("falcon-7b"))


def test_quantized_checkpoint_is_noted(folder):
    profile = read_model_folder(folder(changed(quantization_config={"quant_method": "gptq"})))
    assert profile.notes == "The checkpoint is quantized already (gptq)."


def test_undescribed_architecture_is_refused(folder):
    with pytest.raises(UnsupportedError, match="model_type is 'mamba'"):
        read_model_folder(folder(changed(model_type="mamba")))


def test_setting_that_the_description_does_not_cover_is_refused(folder):
    with pytest.raises(UnsupportedError, match="qk_layernorm is True, and only False is described for 'phi'"):
        read_model_folder(folder(changed(model_type="phi", qk_layernorm=True)))


def test_model_type_is_asked_for(folder):
    with pytest.raises(InputError, match="model_type is missing"):
        read_model_folder(folder(changed(model_type=None)))


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_missing_field_is_named(folder, field):
    with pytest.raises(InputError, match=f"{field} is missing"):
        read_model_folder(folder(changed(**{field: None})))


def test_missing_field_is_named_as_the_type_calls_it(folder):
    with pytest.raises(InputError, match="n_embd is missing"):
        read_model_folder(folder({"model_type": "gpt2", "n_layer": 12, "n_head": 12, "vocab_size": 50257}))


@pytest.mark.parametrize("value", [-1, 0, "many", 1.5])
def test_impossible_value_is_named_with_its_field(folder, value):
    with pytest.raises(InputError, match="vocab_size"):
        read_model_folder(folder(changed(vocab_size=value)))


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "holds a list, not an object")])
def test_broken_file_is_refused(folder, text, message):
    with pytest.raises(InputError, match=message):
        read_model_folder(folder(text))


@pytest.fixture
def fake_hub(folder, monkeypatch):
    def serve(config, stored: int | None) -> None:
        path = folder(config) / "config.json"
        monkeypatch.setattr(hub, "download_config", lambda hf_id: path)
        monkeypatch.setattr(hub, "stored_parameters", lambda hf_id: stored)

    return serve


def test_hub_model_carries_the_count_of_its_weight_files(fake_hub):
    fake_hub(LLAMA, LLAMA3_8B_PARAMETERS)
    resolved = resolve_model("someone/llama-8b-tuned")
    assert resolved.origin == "hub"
    assert resolved.profile.num_parameters_published == LLAMA3_8B_PARAMETERS
    assert resolved.profile.num_parameters_source == "huggingface.co/someone/llama-8b-tuned: safetensors headers"


def test_hub_model_whose_files_disagree_says_so(fake_hub):
    fake_hub(LLAMA, 5)
    profile = read_hub_model("someone/llama-8b-tuned")
    assert profile.num_parameters_published is None
    assert profile.notes == "The weight files hold 5 numbers, the architecture 8,030,261,248."


def gemma3_4b() -> dict[str, object]:
    text = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "sliding_window": 1024}
    return {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}}


def test_vision_part_is_what_the_weight_files_hold_beyond_the_text_model(fake_hub):
    fake_hub(gemma3_4b(), 4_300_079_472)
    profile = read_hub_model("someone/gemma-3-4b-tuned")
    assert architecture(profile) == architecture(find_model("gemma3-4b"))


def test_vision_part_of_unknown_size_is_refused(fake_hub, folder):
    fake_hub(gemma3_4b(), None)
    with pytest.raises(UnsupportedError, match="vision part"):
        read_hub_model("someone/gemma-3-4b-tuned")
    with pytest.raises(UnsupportedError, match="vision part"):
        read_model_folder(folder(gemma3_4b()))


@pytest.fixture
def answering(monkeypatch):
    def answer(error: Exception) -> None:
        def fail(url: str) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda hf_id, name: None)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)

    return answer


def hub_error(kind: str) -> Exception:
    error_class = getattr(huggingface_hub.errors, kind)
    # These classes want the HTTP response, which differs between versions of the library.
    error = error_class.__new__(error_class)
    Exception.__init__(error, "refused")
    return error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RepositoryNotFoundError", "the Hub has no model no/body, or it is private"),
        ("GatedRepoError", "no/body asks to accept a license"),
        ("EntryNotFoundError", r"no/body has no config\.json"),
    ],
)
def test_refusal_of_the_hub_is_told_in_a_sentence(answering, kind, message):
    answering(hub_error(kind))
    with pytest.raises(UnknownModelError, match=message):
        resolve_model("no/body")


@pytest.mark.parametrize(
    "error", [OfflineModeIsEnabled("offline"), ConnectionError("no route")], ids=["offline", "lost"]
)
def test_no_network_is_told_in_a_sentence(answering, error):
    answering(error)
    with pytest.raises(UnknownModelError, match="is not in the catalog, and the Hub cannot be reached"):
        resolve_model("no/body")


def test_stored_parameters_are_none_without_a_network(answering):
    answering(ConnectionError("no route"))
    assert hub.stored_parameters("no/body") is None


def test_stored_parameters_add_up_all_dtypes(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url: None)
    metadata = SimpleNamespace(parameter_count={"BF16": 7, "F32": 2})
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda hf_id: metadata)
    assert hub.stored_parameters("some/body") == 9


def test_config_in_the_local_cache_needs_no_network(monkeypatch, folder):
    path = folder(LLAMA) / "config.json"
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda hf_id, name: str(path))
    assert hub.download_config("some/body") == path


def test_name_that_is_no_hub_id_is_refused():
    with pytest.raises(UnknownModelError, match="is not the form of a Hub id"):
        resolve_model("a b/c")
