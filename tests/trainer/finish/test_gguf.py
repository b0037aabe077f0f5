import json
import os
import sys

import pytest

from profiles.errors import EnvironmentFault, InputError, RunError
from trainer.finish.gguf import CONVERTER, check_type, convert, find_converter

LLAMA_CPP = os.environ.get("LLAMA_CPP_DIR")

# Takes the arguments of llama.cpp's own converter (ggml-org/llama.cpp at 0024aa74), refuses any other, and leaves what
# it was told in the file it writes. The real one needs a copy of llama.cpp and its packages.
STAND_IN = """\
import argparse, json, os, sys
parser = argparse.ArgumentParser()
parser.add_argument("--outfile")
parser.add_argument("--outtype", choices=["f32", "f16", "bf16", "q8_0", "tq1_0", "tq2_0", "auto"], default="auto")
parser.add_argument("model")
arguments = parser.parse_args()
if not os.path.isfile(os.path.join(arguments.model, "config.json")):
    sys.exit(f"{arguments.model} holds no model")
print("converting")
with open(arguments.outfile, "w") as file:
    json.dump({"model": arguments.model, "outtype": arguments.outtype}, file)
"""


@pytest.fixture
def llama_cpp(tmp_path):
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / CONVERTER).write_text(STAND_IN)
    return folder


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_the_converter_gets_the_model_the_type_and_the_file(llama_cpp, model, capfd):
    file = convert(llama_cpp / CONVERTER, model, "q8_0")
    assert file == model / "chat-q8_0.gguf"
    assert json.loads(file.read_text()) == {"model": str(model), "outtype": "q8_0"}
    assert capfd.readouterr() == ("", "converting\n")


def test_a_converter_that_fails_leaves_no_file(llama_cpp, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="ended with exit code 1 and no file"):
        convert(llama_cpp / CONVERTER, tmp_path / "empty", "f16")
    assert list((tmp_path / "empty").iterdir()) == []


def test_it_is_found_in_the_folder_that_is_given(llama_cpp, tmp_path):
    assert find_converter(llama_cpp, {"LLAMA_CPP_DIR": str(tmp_path)}) == llama_cpp / CONVERTER


def test_it_is_found_by_the_variable(llama_cpp):
    assert find_converter(None, {"LLAMA_CPP_DIR": str(llama_cpp)}) == llama_cpp / CONVERTER


def test_it_is_found_on_the_path(llama_cpp, tmp_path):
    (llama_cpp / CONVERTER).chmod(0o755)
    assert find_converter(None, {"PATH": f"{tmp_path}{os.pathsep}{llama_cpp}"}) == llama_cpp / CONVERTER


def test_a_folder_without_it_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=f"there is no {CONVERTER} in {tmp_path}"):
        find_converter(tmp_path, {})


def test_where_it_is_nowhere_the_way_to_get_it_is_told():
    with pytest.raises(EnvironmentFault, match="which is not on the PATH") as caught:
        find_converter(None, {"PATH": ""})
    assert "git clone --depth 1 https://github.com/ggml-org/llama.cpp" in caught.value.hint
    assert "--llama-cpp or LLAMA_CPP_DIR" in caught.value.hint


def test_a_type_that_it_does_not_write_is_bad_input():
    assert check_type("q8_0") == "q8_0"
    with pytest.raises(InputError, match="--gguf is q4_k_m, but"):
        check_type("q4_k_m")


def test_the_command_is_run_by_this_python(llama_cpp, model, monkeypatch):
    (llama_cpp / CONVERTER).write_text("import sys; open(sys.argv[3], 'w').write(sys.executable)")
    assert convert(llama_cpp / CONVERTER, model, "f16").read_text() == sys.executable


def write_llama_tokenizer(folder):
    """A tokenizer in the form of Llama 2's: byte-pair encoding over bytes, with a mark for spaces.

    llama.cpp converts only tokenizers that it knows, and this form is one; that of the tiny model is not.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    from trainer.tiny_model import easy_tasks

    unknown, begin, end = special = ("<unk>", "<s>", "</s>")
    tokenizer = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    known = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=known, show_progress=False)
    tokenizer.train_from_iterator((text for row in easy_tasks(200, 0) for text in row), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown, bos_token=begin, eos_token=end)
    fast.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    for old in folder.glob("tokenizer*"):
        old.unlink()
    fast.save_pretrained(folder)


@pytest.mark.slow
@pytest.mark.skipif(LLAMA_CPP is None, reason="LLAMA_CPP_DIR names no copy of llama.cpp")
@pytest.mark.parametrize(("gguf_type", "error"), [("f32", 0.0), ("f16", 1e-3), ("q8_0", 1e-2)])
def test_llama_cpp_itself_converts_a_model_and_its_weights_are_in_the_file(tmp_path, gguf_type, error):
    import numpy as np
    from safetensors.numpy import load_file

    from trainer.tiny_model import write_tiny_model

    gguf = pytest.importorskip("gguf")
    model = tmp_path / "chat"
    write_tiny_model(model)
    write_llama_tokenizer(model)
    file = convert(find_converter(None, os.environ), model, gguf_type)
    reader = gguf.GGUFReader(file)
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("tokenizer.ggml.model").contents() == "llama"
    assert "message.content" in reader.get_field("tokenizer.chat_template").contents()
    config = json.loads((model / "config.json").read_text())
    assert reader.get_field("llama.block_count").contents() == config["num_hidden_layers"]
    packed = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    weights = load_file(model / "model.safetensors")
    for ours, theirs in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.3.mlp.down_proj.weight": "blk.3.ffn_down.weight",
        "model.layers.5.self_attn.v_proj.weight": "blk.5.attn_v.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        scale = np.abs(weights[ours]).max()
        assert np.allclose(packed[theirs], weights[ours], rtol=0, atol=error * scale)
