import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from planner.config.run_config import LoraKnobs, ParallelKnobs, RunConfig
from planner.config.run_file import parse_run_file, read_run_file, write_run_file
from planner.step.resolve import resolve_step
from planner.step.step_spec import Sharding
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

QLORA: dict[str, Any] = {"method": "qlora", "quantization": "nf4", "lora": LoraKnobs()}


def config(**knobs: Any) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "gpu": "A100-SXM4-80GB", "lora": LoraKnobs()} | knobs)


def test_one_card_has_no_parallel_section_and_several_share_the_batch_by_themselves():
    assert config().parallel is None
    assert config(num_gpus=4).parallel == ParallelKnobs(strategy="ddp")
    assert config(num_nodes=2).parallel == ParallelKnobs(strategy="ddp")


def test_the_batch_of_a_step_counts_the_groups_that_have_rows_of_their_own():
    knobs = {"num_gpus": 8, "num_nodes": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert config(**knobs).effective_batch_size == 2 * 4 * 16
    split = ParallelKnobs(strategy="fsdp", context_parallel_size=4)
    assert config(**knobs, parallel=split).effective_batch_size == 2 * 4 * 4


def test_4_bit_weights_are_packed_in_a_float_dtype_where_they_are_shared_out():
    shared = config(**QLORA, num_gpus=2, parallel={"strategy": "fsdp"})
    assert shared.quant_storage == "bfloat16"
    assert config(**QLORA, num_gpus=2).quant_storage is None
    assert config(num_gpus=2, parallel={"strategy": "fsdp"}).quant_storage is None


def test_a_parallel_section_is_written_with_every_knob_and_read_back(tmp_path: Path):
    path = tmp_path / "run.yaml"
    written = config(num_gpus=8, num_nodes=4, parallel={"strategy": "zero3", "offload": "parameters"})
    write_run_file(written, path)
    assert read_run_file(path) == written
    assert "parallel:\n  strategy: zero3\n  offload: parameters\n  reshard_after_forward: true\n" in path.read_text()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one card": ({"parallel": {"strategy": "fsdp"}}, "for several cards, but num_gpus is 1; leave the section out"),
    "ddp offload": ({"parallel": {"offload": "optimizer"}}, "offload is optimizer, which ddp cannot; use none"),
    "fsdp offload": (
        {"parallel": {"strategy": "fsdp", "offload": "optimizer"}},
        "offload is optimizer, which fsdp cannot; use none or parameters",
    ),
    "zero2 offload": (
        {"parallel": {"strategy": "zero2", "offload": "parameters"}},
        "offload is parameters, which zero2 cannot; use none or optimizer",
    ),
    "reshard": (
        {"parallel": {"strategy": "zero3", "reshard_after_forward": False}},
        "reshard_after_forward is for fsdp, but strategy is zero3",
    ),
    "tensor on ddp": ({"parallel": {"tensor_parallel_size": 2}}, "built on fsdp, but strategy is ddp; use fsdp, or 1"),
    "product": (
        {"method": "full", "lora": None, "parallel": {"strategy": "fsdp", "tensor_parallel_size": 3}},
        "3 x context_parallel_size 1 does not divide the 8 cards",
    ),
    "group across machines": (
        {"num_gpus": 4, "num_nodes": 2, "parallel": {"strategy": "fsdp", "tensor_parallel_size": 8}},
        "tensor_parallel_size is 8, but a machine has 4 cards",
    ),
    "tensor adapters": ({"parallel": {"strategy": "fsdp", "tensor_parallel_size": 2}}, "method is lora; only full"),
    "odd row": (
        {"max_length": 1030, "parallel": {"strategy": "fsdp", "context_parallel_size": 8}},
        "it has to be a multiple of 16",
    ),
    "packed row": (
        {"packing": True, "parallel": {"strategy": "fsdp", "context_parallel_size": 2}},
        "takes sdpa attention of whole rows",
    ),
    "int8": ({**QLORA, "quantization": "int8", "parallel": {"strategy": "fsdp"}}, "int8, which fsdp cannot share out"),
    "storage": (
        {**QLORA, "dtype": "float32", "parallel": {"strategy": "zero3"}},
        "dtype is float32, but zero3 shares out 4-bit weights only .* set dtype to bfloat16",
    ),
    "float32 behind the back": (
        {"mixed_precision": "no", "parallel": {"strategy": "zero2"}},
        "DeepSpeed would make the weights float32; set mixed_precision to bf16",
    ),
    "8 bit": ({"optim": "adamw_8bit", "parallel": {"strategy": "fsdp"}}, "adamw_8bit, which does not work .* fsdp"),
    "paged": ({"optim": "paged_adamw_32bit", "parallel": {"strategy": "zero2"}}, "does not work .* zero2"),
    "host sgd": (
        {"optim": "sgd", "parallel": {"strategy": "zero1", "offload": "optimizer"}},
        "DeepSpeed's optimizer in host memory is Adam",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_cannot_do_is_refused_in_one_sentence(case: str):
    knobs, rule = REFUSED[case]
    cards = {} if case == "one card" else {"num_gpus": 8}
    with pytest.raises(ValidationError) as refusal:
        config(**(cards | knobs))
    assert re.search(rule, str(refusal.value)), str(refusal.value)


def test_a_misspelt_key_of_the_section_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError) as refusal:
        parse_run_file("model: x\nlora: {}\nnum_gpus: 2\nparallel: {stratgy: fsdp}", Path("run.yaml"))
    assert "parallel.stratgy" in refusal.value.message
    assert refusal.value.hint == "did you mean strategy?"


def test_8_bit_optimizers_work_where_each_card_holds_all():
    assert config(num_gpus=2, optim="adamw_8bit").optim == "adamw_8bit"


def test_the_step_of_several_cards_says_how_they_share_it():
    gpu, model = find_gpu("a100-80gb"), find_model("7b")
    knobs = {"num_gpus": 8, "num_nodes": 2, "max_length": 4096}
    shared = config(**knobs, parallel={"strategy": "fsdp", "offload": "parameters", "context_parallel_size": 2})
    sharding = resolve_step(shared, model, gpu).sharding
    assert sharding == Sharding("fsdp", 8, 2, "parameters", context_parallel_size=2)
    assert (sharding.world_size, sharding.data_parallel_size, sharding.num_shards) == (16, 8, 16)
    assert resolve_step(config(), model, gpu).sharding is None
