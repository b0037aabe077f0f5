"""Files of the peers' own example folders, and what single keys come to."""

from pathlib import Path

import pytest
import yaml

from planner.asking.wishes import Wishes
from planner.peers.check import check_file, peer_of
from planner.peers.document import parse_document
from planner.peers.peer import PEERS
from planner.peers.peer_file import read_peer_file
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError, UnknownModelError, UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

GOLDEN = Path(__file__).parents[2] / "golden" / "peers"
FILES = sorted(path for path in GOLDEN.iterdir() if path.suffix != ".md")

A100, T4 = find_gpu("a100-80gb"), find_gpu("t4")
MODEL = "meta-llama/Llama-3.1-8B"
SMALLEST = {
    "axolotl": {"base_model": MODEL},
    "llama-factory": {"model_name_or_path": MODEL, "bf16": True},
    "trl": {"model_name_or_path": MODEL, "dtype": "bfloat16"},
    "unsloth": {"model": MODEL},
}


def read(peer, gpu=A100, **values):
    text = yaml.safe_dump(SMALLEST[peer] | values)
    return read_peer_file(parse_document(text, Path("f.yaml")), PEERS[peer], MODEL, find_model(MODEL), gpu)


def step(peer, gpu=A100, **values):
    file = read(peer, gpu, **values)
    return resolve_step(file.config, find_model(MODEL), gpu, file.traits)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_key_of_a_real_file_is_accounted_for(path):
    answer = check_file(*peer_of(path), "a100-80gb")
    accounts = answer.file.accounts
    assert [account.key for account in accounts] == list(answer.file.values)
    assert {account.status for account in accounts} <= {"understood", "no effect", "off", "not modeled"}
    assert answer.estimate.process_bytes > 0


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("axolotl-llama-3-lora-8b.yml", ["lora_modules_to_save"]),
        ("llama-factory-llama3-badam.yaml", ["use_badam"]),
        ("llama-factory-qwen3-full-sft.yaml", ["deepspeed"]),
        ("llama-factory-llama3-pissa.yaml", ["pissa_init"]),
        ("axolotl-mistral-qlora.yml", []),
    ],
)
def test_what_matters_and_is_not_counted_is_listed(name, missing):
    answer = check_file(*peer_of(GOLDEN / name), "a100-80gb")
    assert [account.key for account in answer.file.not_counted] == missing


def test_a_key_that_may_take_more_leaves_no_promise():
    answer = check_file(*peer_of(GOLDEN / "axolotl-llama-3-lora-8b.yml"), "h200")
    assert answer.estimate.interval_bytes[1] < answer.usable_bytes
    assert answer.verdict == "tight"


def test_a_key_that_the_peer_does_not_have_is_listed_with_the_one_that_is_meant():
    (account,) = read("axolotl", micro_batchsize=4).not_counted
    assert account.status == "unknown"
    assert account.why == "Axolotl has no such key; did you mean micro_batch_size?"


def test_the_defaults_are_those_of_the_peer():
    batches = {peer: read(peer).config.per_device_train_batch_size for peer in ("trl", "axolotl")}
    assert batches == {"trl": 8, "axolotl": 1}
    assert read("llama-factory").config.lora.r == 8
    assert read("unsloth").config.lora.r == 64
    assert read("axolotl").config.max_length == 512
    assert not read("axolotl").config.gradient_checkpointing
    assert read("trl").config.gradient_checkpointing


def test_an_evaluation_batch_is_the_peers_own():
    assert step("axolotl", val_set_size=0.1, eval_steps=10, micro_batch_size=3).eval_batch == 3
    assert step("llama-factory", val_size=0.1, eval_strategy="steps").eval_batch == 8
    assert step("llama-factory", val_size=0.1).eval_batch is None


def test_llama_factory_trains_in_float32_unless_it_is_pure():
    assert step("llama-factory", finetuning_type="full").weight_dtype == "float32"
    assert step("llama-factory", finetuning_type="full", pure_bf16=True).weight_dtype == "bfloat16"
    assert step("llama-factory", pure_bf16=True).adapter.dtype == "bfloat16"


def test_llama_factory_can_hold_norms_in_float32():
    assert step("llama-factory", upcast_layernorm=True).float32_norms


def test_a_plugin_decides_the_loss_of_axolotl():
    keys = {"liger_fused_linear_cross_entropy": True}
    assert step("axolotl", **keys).loss == "full"
    assert step("axolotl", plugins=["axolotl.integrations.liger.LigerPlugin"], **keys).loss == "liger"
    assert step("llama-factory", enable_liger_kernel=True).loss == "liger"
    assert step("trl").loss == "fused"


def test_unsloth_chooses_precision_by_the_card():
    assert step("unsloth", A100).compute_dtype == "bfloat16"
    assert step("unsloth", T4).compute_dtype == "float16"


def test_older_keys_of_attention_are_read():
    assert read("axolotl", flash_attention=True).config.attn_implementation == "flash_attention_2"
    assert read("axolotl", sdp_attention=True).config.attn_implementation == "sdpa"


def test_trl_takes_what_peft_takes_where_no_modules_are_named():
    assert step("trl", use_peft=True).adapter.targets == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("keys", "objective"),
    [
        ({}, "sft"),
        ({"beta": 0.1}, "dpo"),
        ({"loss_type": "ipo"}, "ipo"),
        ({"desirable_weight": 1.5}, "kto"),
        ({"center_rewards_coefficient": 0.01}, "reward"),
    ],
)
def test_the_command_of_trl_is_told_by_its_keys(keys, objective):
    assert read("trl", **keys).config.objective == objective


@pytest.mark.parametrize(
    ("peer", "values", "message"),
    [
        ("axolotl", {"optimizer": "came_pytorch"}, "optimizer is 'came_pytorch', but what this optimizer keeps"),
        ("axolotl", {"adapter": "qlora"}, "adapter is 'qlora', but it needs load_in_4bit: true"),
        ("axolotl", {"load_in_4bit": True}, "a quantized base is only trained below an adapter"),
        ("llama-factory", {"finetuning_type": "freeze"}, "what a step takes is only known for lora, full"),
        ("llama-factory", {"quantization_bit": 3}, "only 4 and 8 of bitsandbytes are described"),
        ("trl", {"dtype": "int4"}, "dtype is 'int4', but what a step takes is only known for float32, float16"),
        ("trl", {"max_length": -1}, "comes to a run that cannot be: max_length is -1"),
    ],
)
def test_what_is_not_described_is_refused_in_the_files_own_words(peer, values, message):
    with pytest.raises(ConfigError, match=message):
        read(peer, **values)


def test_preferences_are_only_answered_where_the_step_is_described(tmp_path):
    path = tmp_path / "dpo.yml"
    path.write_text(f"base_model: {MODEL}\nrl: dpo\nmicro_batch_size: 1\nsequence_len: 1024\n")
    with pytest.raises(UnsupportedError, match="trains dpo, but what a step of Axolotl takes"):
        check_file(*peer_of(path), "a100-80gb")


def test_a_model_that_is_not_known_can_be_replaced_by_one_of_its_shape(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / "a.yml"
    path.write_text("base_model: nobody/llama-8b-chat\nmicro_batch_size: 1\nsequence_len: 1024\n")
    with pytest.raises(UnknownModelError, match="nobody/llama-8b-chat is not in the catalog") as error:
        check_file(*peer_of(path), "a100-80gb")
    assert error.value.hint.startswith("--model takes another name of the same shape")
    answer = check_file(*peer_of(path), "a100-80gb", "llama3-8b")
    assert answer.target.name == "meta-llama/Meta-Llama-3-8B"


def test_all_cards_of_a_machine_share_the_run():
    answer = check_file(*peer_of(GOLDEN / "axolotl-mistral-qlora.yml"), "g5.12xlarge")
    assert (answer.config.num_gpus, answer.config.parallel.strategy) == (4, "ddp")


def test_a_fix_is_for_as_many_cards_as_the_question():
    wishes = Wishes(num_gpus=2)
    answer = check_file(*peer_of(GOLDEN / "axolotl-llama-2-lora.yml"), "rtx-4090", wishes=wishes)
    assert answer.fix.prediction.config.num_gpus == 2
