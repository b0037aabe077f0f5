from pathlib import Path

import pytest
from transformers import BartConfig, CohereConfig, GraniteMoeConfig, MambaConfig

from calibration.exact import answer, traced_step
from planner.config.run_config import LoraKnobs, ParallelKnobs, RunConfig
from planner.memory.estimate import estimate
from planner.predict.traced import TraceQuestion
from planner.step.resolve import resolve_step
from planner.units import GIB
from profiles.errors import ConfigError, UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model

T4 = find_gpu("t4")
SMOLLM = find_model("SmolLM2-135M")


def question(**changes):
    config = RunConfig(
        model="any",
        gpu="t4",
        lora=LoraKnobs(),
        dtype="float16",
        mixed_precision="fp16",
        max_length=512,
        per_device_train_batch_size=2,
    )
    usual = {"config": config, "gpu": T4, "trainer": "fitune", "model": SMOLLM, "folder": None, "usable_bytes": GIB}
    return TraceQuestion(**{**usual, **changes})


@pytest.fixture
def undescribed(tmp_path: Path) -> Path:
    """A model of a type that the closed form does not describe."""
    CohereConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=2000,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ).save_pretrained(tmp_path)
    return tmp_path


def test_a_trace_agrees_with_the_closed_form():
    asked = question()
    found = answer(asked)
    expected = estimate(SMOLLM, resolve_step(asked.config, SMOLLM, T4), T4)
    assert found.phases[found.binding_phase] == pytest.approx(expected.allocated_bytes, rel=0.02)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_card_of_several_is_traced_and_holds_buffers_of_nccl(strategy):
    shared = {"num_gpus": 4, "parallel": ParallelKnobs(strategy=strategy)}
    asked = question(config=question().config.model_copy(update=shared))
    found = answer(asked)
    expected = estimate(SMOLLM, resolve_step(asked.config, SMOLLM, T4), T4)
    assert found.phases[found.binding_phase] == pytest.approx(expected.allocated_bytes, rel=0.02)
    assert found.process_bytes - found.reserved_bytes == expected.process_bytes - expected.reserved_bytes


def test_each_form_of_memory_holds_the_one_before():
    found = answer(question())
    allocated = found.phases[found.binding_phase]
    assert sum(one.bytes for one in found.alive) == pytest.approx(allocated, rel=0.01)
    assert allocated <= found.reserved_bytes < found.process_bytes
    low, high = found.interval_bytes
    assert allocated < low <= found.process_bytes < high


@pytest.mark.parametrize(
    ("knobs", "phase", "named"),
    [
        ({"lora": None, "method": "full", "optim": "adamw_torch"}, "step", "optimizer state"),
        ({"per_device_eval_batch_size": 64, "data": {"path": "x", "eval_fraction": 0.1}}, "evaluation", "temporary"),
    ],
)
def test_what_is_alive_is_named_in_whichever_phase_is_the_largest(knobs, phase, named):
    usual = {"model": "any", "gpu": "a100-40gb", "lora": {}, "max_length": 64}
    config = RunConfig.model_validate(usual | knobs)
    found = answer(question(config=config, gpu=find_gpu("a100-40gb")))
    assert found.binding_phase == phase
    assert named in {one.kind for one in found.alive}
    assert sum(one.bytes for one in found.alive) == pytest.approx(found.phases[phase], rel=0.01)


def test_what_is_alive_is_named():
    alive = {one.kind: one.why for one in answer(question()).alive}
    assert "model.embed_tokens.weight" in alive["weight"]
    assert "30 x" in alive["adapter"]


def test_on_a_cpu_live_tensors_are_all_there_is():
    config = question().config.model_copy(update={"dtype": "float32", "mixed_precision": "no", "gpu": None})
    found = answer(question(config=config, gpu=None))
    assert found.phases[found.binding_phase] == found.process_bytes == found.interval_bytes[1]


def test_an_undescribed_architecture_is_traced_from_its_config(undescribed):
    found = answer(question(model=None, folder=undescribed))
    assert found.binding_phase in found.phases
    assert any(one.kind == "adapter" for one in found.alive)


def test_an_undescribed_architecture_knows_its_limits(undescribed):
    config = question().config.model_copy(update={"max_length": 4096})
    with pytest.raises(ConfigError, match="at most 1024"):
        answer(question(model=None, folder=undescribed, config=config))


def test_an_undescribed_encoder_decoder_has_only_the_full_loss(tmp_path):
    sizes = {"d_model": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 500}
    layers = {"encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    BartConfig(**sizes, **layers).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="loss is fused, but any has an encoder"):
        answer(question(model=None, folder=tmp_path))
    full = question().config.model_copy(update={"loss": "full"})
    assert answer(question(model=None, folder=tmp_path, config=full)).process_bytes


def test_every_target_of_an_undescribed_architecture_has_a_name(undescribed):
    _, step = traced_step(question(model=None, folder=undescribed))
    assert step.adapter.targets == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


def test_what_transformers_does_not_know_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing_like_it"}')
    with pytest.raises(UnsupportedError, match="nothing_like_it"):
        answer(question(model=None, folder=tmp_path))


def test_flash_attention_is_traced_where_it_is_not_installed(undescribed):
    config = question().config.model_copy(update={"attn_implementation": "flash_attention_2"})
    assert answer(question(model=None, folder=undescribed, config=config)).process_bytes


def test_a_network_without_attention_is_traced(tmp_path):
    MambaConfig(hidden_size=64, num_hidden_layers=2, vocab_size=500, state_size=4).save_pretrained(tmp_path)
    usual = question().config
    with pytest.raises(UnsupportedError, match="no mamba with attn_implementation sdpa") as refused:
        answer(question(model=None, folder=tmp_path))
    assert "eager" in refused.value.hint
    eager = usual.model_copy(update={"attn_implementation": "eager", "max_length": 64})
    assert any(one.kind == "adapter" for one in answer(question(model=None, folder=tmp_path, config=eager)).alive)


def test_what_a_library_cannot_compute_is_told_with_a_way_out(tmp_path):
    GraniteMoeConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
    ).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match=r"granitemoe cannot be traced: .*num_experts") as refused:
        answer(question(model=None, folder=tmp_path))
    config = question().config.model_copy(update={"loss": "full"})
    assert "loss=full" in refused.value.hint
    assert answer(question(model=None, folder=tmp_path, config=config)).process_bytes
