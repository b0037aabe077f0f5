"""The smallest change of a file that fits."""

import json
from pathlib import Path

import pytest

from planner.asking.wishes import Wishes
from planner.peers.check import check_file, peer_of

GOLDEN = Path(__file__).parents[2] / "golden" / "peers"


def answer(name, gpu):
    return check_file(*peer_of(GOLDEN / name), gpu)


def changed(fix):
    return {change.key: change.new for change in fix.changes}


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("axolotl-mistral-qlora.yml", "t4"),
        ("axolotl-llama-2-lora.yml", "24GB"),
        ("axolotl-llama-3-qlora-1b.yml", "t4"),
        ("axolotl-phi2-ft.yml", "a10g"),
        ("llama-factory-qwen3-lora-sft.yaml", "t4"),
        ("llama-factory-qwen3-full-sft.yaml", "24GB"),
        ("trl-example-config.yaml", "8GB"),
    ],
)
def test_the_fixed_file_passes_the_same_check(name, gpu, tmp_path):
    before = answer(name, gpu)
    assert before.verdict != "fits"
    path = tmp_path / name
    path.write_text(before.fix.document.text)
    after = check_file(*peer_of(path), gpu)
    assert after.objections == ()
    assert after.estimate.process_bytes == before.fix.prediction.estimate.process_bytes
    assert after.estimate.interval_bytes[1] <= after.usable_bytes


def test_a_file_that_fits_has_no_fix():
    assert answer("axolotl-mistral-qlora.yml", "a100-80gb").fix is None


def test_comments_order_and_all_other_lines_stay():
    fix = answer("axolotl-mistral-qlora.yml", "t4").fix
    old = (GOLDEN / "axolotl-mistral-qlora.yml").read_text().splitlines()
    new = fix.document.text.splitlines()
    keys = {change.key for change in fix.changes}
    kept = [line for line in old if line.partition(":")[0] not in keys]
    assert [line for line in new if line in kept] == kept
    assert "# save_first_step: true  # uncomment this to validate checkpoint saving works with your config" in new


def test_a_smaller_micro_batch_keeps_the_batch_of_a_step():
    fix = answer("axolotl-llama-2-lora.yml", "24GB").fix
    config = fix.prediction.config
    assert config.effective_batch_size == answer("axolotl-llama-2-lora.yml", "24GB").file.config.effective_batch_size


def test_what_changes_no_result_comes_before_what_does():
    """On 24 GB the micro-batch and a fused loss are enough, so neither rows nor base nor optimizer change."""
    keys = changed(answer("axolotl-llama-2-lora.yml", "24GB").fix)
    assert not keys.keys() & {"sequence_len", "optimizer", "adapter", "load_in_4bit"}


def test_an_older_card_gets_its_own_precision_and_attention():
    keys = changed(answer("axolotl-llama-3-qlora-1b.yml", "t4").fix)
    assert (keys["bf16"], keys["fp16"], keys["attn_implementation"]) == (False, True, "sdpa")
    # Without flash attention Axolotl would mix the documents of a row.
    assert keys["sample_packing"] is False


def test_an_older_name_of_a_changed_key_goes(tmp_path):
    path = tmp_path / "old.yml"
    text = "base_model: meta-llama/Llama-3.1-8B\nadapter: lora\nlora_r: 8\nlora_target_linear: true\n"
    path.write_text(text + "flash_attention: true  # fast\nbf16: auto\nsequence_len: 512\nmicro_batch_size: 1\n")
    fix = check_file(*peer_of(path), "v100-32gb").fix
    assert "flash_attention:" not in fix.document.text
    assert "attn_implementation: sdpa" in fix.document.text


def test_keys_in_sections_change_in_their_section(tmp_path):
    path = tmp_path / "unsloth.yaml"
    path.write_text("model: meta-llama/Llama-2-13b-hf\ntraining:\n  batch_size: 64  # large\n  max_seq_length: 4096\n")
    fix = check_file(*peer_of(path), "24GB").fix
    assert changed(fix)["training.batch_size"] < 64
    assert "# large" in fix.document.text


def test_json_stays_json(tmp_path):
    path = tmp_path / "args.json"
    path.write_text('{"output_dir": "out", "per_device_train_batch_size": 16, "bf16": true}')
    found = check_file(*peer_of(path), "a100-80gb", "1b")
    assert json.loads(found.fix.document.text) == {"output_dir": "out"} | changed(found.fix) | kept(found)


def kept(found):
    return {key: value for key, value in found.file.values.items() if key not in changed(found.fix)}


def test_what_is_wished_is_written_as_well():
    wishes = Wishes(max_length=4096)
    fix = check_file(*peer_of(GOLDEN / "axolotl-mistral-qlora.yml"), "t4", wishes=wishes).fix
    assert changed(fix)["sequence_len"] <= 4096


def test_other_plugins_stay_when_one_is_added(tmp_path):
    path = tmp_path / "plugins.yml"
    text = (GOLDEN / "axolotl-phi2-ft.yml").read_text() + "plugins:\n  - axolotl.integrations.spectrum.SpectrumPlugin\n"
    path.write_text(text)
    fix = check_file(*peer_of(path), "rtx-4090").fix
    assert fix.document.values["plugins"] == [
        "axolotl.integrations.spectrum.SpectrumPlugin",
        "axolotl.integrations.liger.LigerPlugin",
    ]
