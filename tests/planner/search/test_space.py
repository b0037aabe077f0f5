import pytest

from planner.config.run_config import LoraKnobs
from planner.data.lengths import DataLengths
from planner.search.request import Request
from planner.search.space import DEFAULT_LENGTH, groups, openings
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

MODEL, T4, A100 = find_model("7b"), find_gpu("t4"), find_gpu("a100-80gb")


def configs(gpu=T4, max_length=1024, rank=16, **request):
    opened = groups(Request(MODEL, gpu, **request), max_length, rank)
    return [config for group in opened for row in group.rows for config in row]


def values(field, **request):
    return {getattr(config, field) for config in configs(**request)}


def test_auto_tries_adapters_on_every_base():
    assert values("quantization") == {None, "int8", "nf4"}
    assert values("method") == {"lora", "qlora"}


def test_full_fine_tuning_is_planned_only_when_asked_for():
    assert values("method", method="full") == {"full"}


def test_qlora_means_4_bits():
    assert values("quantization", method="qlora") == {"nf4"}


def test_a_given_quantization_means_qlora():
    knobs = {"quantization": "int8"}
    assert (values("method", knobs=knobs), values("quantization", knobs=knobs)) == ({"qlora"}, {"int8"})


def test_quantization_none_means_16_bits():
    assert values("method", knobs={"quantization": None}) == {"lora"}


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("optim", "lion_8bit"),
        ("loss", "full"),
        ("attn_implementation", "eager"),
        ("gradient_checkpointing", False),
        ("checkpoint_every_n_layers", 3),
        ("per_device_eval_batch_size", 7),
        ("seed", 7),
        ("learning_rate", 1e-5),
        ("packing", True),
        ("max_length", 333),
    ],
)
def test_a_given_knob_never_changes(knob, value):
    assert values(knob, knobs={knob: value}) == {value}


def test_given_adapter_knobs_never_change():
    given = {"r": 5, "target_modules": ["q_proj"], "lora_dropout": 0.1}
    usual = LoraKnobs().model_dump()
    assert all(config.lora == LoraKnobs(**usual | given) for config in configs(knobs={"lora": given}))


def test_all_candidates_keep_the_effective_batch():
    assert {config.effective_batch_size for config in configs(effective_batch_size=24)} == {24}


def test_no_candidate_is_listed_twice():
    found = configs()
    assert len({config.model_dump_json() for config in found}) == len(found)


def test_groups_come_from_the_least_lossy_to_the_most():
    lossiness = [group.lossiness for group in groups(Request(MODEL, A100, method="full"), 1024, 16)]
    assert lossiness == sorted(lossiness)


def test_offload_and_paging_are_not_offered_without_a_card():
    found = configs(gpu=None, free_bytes=2**34)
    assert not any(config.checkpoint_offload or "paged" in config.optim for config in found)


def test_a_length_that_nobody_gave_starts_at_the_default_and_halves():
    assert [length for length, _ in openings(Request(MODEL, T4))] == [DEFAULT_LENGTH, 1024, 512, 512]


def test_a_given_length_is_the_only_one():
    assert {length for length, _ in openings(Request(MODEL, T4, knobs={"max_length": 4096}))} == {4096}


def test_a_given_rank_is_the_only_one():
    assert {rank for _, rank in openings(Request(MODEL, T4, knobs={"lora": {"r": 64}}))} == {64}


def test_an_open_length_covers_the_longest_row_of_the_data():
    assert openings(Request(MODEL, T4, lengths=DataLengths.of((100, 700))))[0] == (704, 16)


def test_an_open_length_stays_within_the_positions_of_the_model():
    assert openings(Request(MODEL, T4, lengths=DataLengths.of((10**6,))))[0][0] == MODEL.max_position_embeddings


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"gradient_checkpointing": False, "checkpoint_offload": True}, "have no effect without"),
        ({"mixed_precision": "bf16"}, "mixed_precision is bf16, but dtype is float16"),
        ({"dtype": "bfloat16", "mixed_precision": "bf16"}, "only emulated on T4"),
        ({"attn_implementation": "flash_attention_2"}, "no kernels for T4"),
        ({"lora": {"r": 0}}, "lora.r: Input should be greater than 0"),
    ],
)
def test_knobs_that_contradict_each_other_or_the_card_are_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        configs(knobs=knobs)


def test_an_adapter_for_full_fine_tuning_is_refused():
    with pytest.raises(ConfigError, match="full must not have it"):
        configs(method="full", knobs={"lora": {"r": 8}})
