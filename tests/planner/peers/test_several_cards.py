"""The layout of several cards goes into a peer's files and is read from them."""

import json

import pytest
import yaml

import planner
from planner.config.engine_files import deepspeed_config, layout_of_deepspeed
from planner.config.parallel_knobs import OFFLOADS, ParallelKnobs
from planner.config.run_config import RunConfig
from planner.peers.export import export_run, write_export
from profiles.errors import ConfigError

CARDS = 4


def run(folder, **parallel):
    data = {"path": str(folder / "rows.jsonl"), "format": "messages"}
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    knobs = {"model": "meta-llama/Llama-3.1-8B", "gpu": "A100-SXM4-80GB", "method": "lora", "lora": {}, "data": data}
    return RunConfig.model_validate(knobs | {"num_gpus": CARDS, "parallel": parallel})


def written(folder, target, **parallel):
    export = export_run(run(folder, **parallel), target, folder)
    write_export(export, force=True)
    return export.main


@pytest.mark.parametrize("strategy", OFFLOADS)
def test_deepspeeds_file_comes_back_as_the_layout_that_it_was_written_for(strategy, tmp_path):
    for offload in OFFLOADS[strategy] if strategy.startswith("zero") else ():
        layout = {"strategy": strategy, "offload": offload}
        assert layout_of_deepspeed(deepspeed_config(run(tmp_path, **layout))) == layout


@pytest.mark.parametrize("target", ["axolotl", "llama-factory"])
def test_a_file_for_several_cards_is_estimated_in_its_layout(target, tmp_path):
    path = written(tmp_path, target, strategy="zero3")
    answer = planner.estimate(path, "a100-80gb", num_gpus=CARDS)
    assert answer.config.parallel == ParallelKnobs(strategy="zero3")
    assert answer.file.not_counted == ()
    each_holds_all = planner.estimate(path, "a100-80gb", num_gpus=CARDS, knobs={"parallel": {"strategy": "ddp"}})
    assert answer.estimate.process_bytes < 0.7 * each_holds_all.estimate.process_bytes


def test_on_one_card_the_key_is_not_counted(tmp_path):
    answer = planner.estimate(written(tmp_path, "axolotl", strategy="zero2"), "a100-80gb")
    assert [account.key for account in answer.file.not_counted] == ["deepspeed"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no such file here"),
        ("{", "cannot be read"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "an offload to nvme"),
    ],
    ids=["gone", "broken", "nvme"],
)
def test_a_layout_that_is_not_known_is_listed_with_the_reason(content, why, tmp_path):
    path = written(tmp_path, "axolotl", strategy="zero3")
    (tmp_path / "deepspeed.json").unlink()
    if content is not None:
        (tmp_path / "deepspeed.json").write_text(content if isinstance(content, str) else json.dumps(content))
    answer = planner.estimate(path, "a100-80gb", num_gpus=CARDS)
    (account,) = answer.file.not_counted
    assert why in account.why
    assert answer.verdict == "tight"


def test_the_file_is_found_beside_the_one_that_names_it(tmp_path, monkeypatch):
    path = written(tmp_path, "axolotl", strategy="zero1")
    values = yaml.safe_load(path.read_text()) | {"deepspeed": "deepspeed.json"}
    path.write_text(yaml.safe_dump(values))
    assert planner.estimate(path, "a100-80gb", num_gpus=CARDS).config.parallel.strategy == "zero1"


def test_training_arguments_may_hold_deepspeeds_settings_themselves(tmp_path):
    path = tmp_path / "args.json"
    held = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    path.write_text(
        json.dumps({"output_dir": "out", "bf16": True, "per_device_train_batch_size": 1, "deepspeed": held})
    )
    from planner.asking.wishes import Wishes
    from planner.peers.check import check_file, peer_of

    answer = check_file(*peer_of(path), "a100-80gb", "1b", Wishes(num_gpus=CARDS))
    assert answer.config.parallel == ParallelKnobs(strategy="zero2", offload="optimizer")


@pytest.mark.parametrize(
    ("target", "why"),
    [("axolotl", "FSDP2"), ("llama-factory", "accelerate"), ("script", "saves as a single process does")],
)
def test_a_layout_that_a_peer_does_not_get_is_refused_with_the_reason(target, why, tmp_path):
    with pytest.raises(ConfigError, match=f"parallel.strategy is fsdp, which is not written for {target}: .*{why}"):
        export_run(run(tmp_path, strategy="fsdp"), target, tmp_path)
