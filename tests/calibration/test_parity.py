"""The closed form against the trace, on shrunken models: saved tensors by name, and the peaks of the phases.

Left out: eager attention of T5, which names the float32 weights of autocast to the end of a layer (its peaks are up
to 4 % off), torch's math kernel with dropout of attention weights (which the trace takes from the CPU), and Falcon
without masks (its class makes one of its own). Of the losses that other trainers take, the phases that do not bind:
with phi-2 and GPT-2 those of the loss in place are up to 11 % off. The same of classes that only have eager attention,
as Bloom and Falcon name the weights of the layer before.
"""

from dataclasses import replace
from itertools import cycle

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planner.memory.estimate import estimate
from planner.memory.timeline import timeline
from planner.step.network import network
from planner.step.step_spec import Adapter, AttentionKernel, StepSpec
from profiles.model import ModelProfile
from profiles.model_catalog import find_model

pytestmark = pytest.mark.slow

TOLERANCE = 0.02
"""Of the largest peak, and of each phase."""

SHAPE = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "hidden_size": 256,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 192,
    "rotary_dim": 16,
    "word_embed_proj_dim": 256,
    "sliding_window": 64,
    "num_decoder_layers": 4,
}

FUSED = (
    "llama2-7b",
    "llama3.1-8b",
    "mistral-7b",
    "mixtral-8x7b",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "qwen3-30b-a3b",
    "gemma3-1b",
    "phi-2",
    "phi-3-mini",
    "gpt2",
    "pythia-160m",
    "opt-1.3b",
    "stablelm-3b",
    "olmo2-1b",
    "santacoder",
    "starcoder2-3b",
    "smollm3-3b",
    "granite-3.0-2b",
)
EAGER_ONLY = ("gemma2-2b", "bloom-560m", "gpt-neo-1.3b", "falcon-7b")
WITH_ENCODER = ("flan-t5-base", "mt0-small")


def small(name: str) -> ModelProfile:
    """A model with few and narrow layers, the ratio of its MLP and its grouping of heads kept."""
    model = find_model(name)
    heads, groups = model.num_attention_heads, model.num_key_value_heads
    changes = {field: value for field, value in SHAPE.items() if getattr(model, field) is not None}
    changes["num_key_value_heads"] = 8 if groups == heads else min(groups, 2)
    changes["intermediate_size"] = round(256 * model.intermediate_size / model.hidden_size / 64) * 64
    changes |= {"num_parameters_published": None, "num_parameters_source": None, "num_other_parameters": 0}
    # T5's class has a width of its own where the config names none.
    if model.head_dim is not None or model.is_encoder_decoder:
        changes["head_dim"] = 32
    if model.layer_types is not None:
        changes["layer_types"] = model.layer_types[:4]
    return model.model_copy(update=changes)


def phases(model: ModelProfile, step: StepSpec) -> dict[str, int]:
    """The closed form's peaks of the phases that a trace has."""
    predicted, activity = estimate(model, step, None), timeline(network(model, step.objective), step)
    always = predicted.phases["forward"] - activity.forward.bytes
    return {
        "forward": always + max(activity.forward.bytes, activity.loss_forward.bytes),
        "backward": always + max(activity.backward.bytes, activity.loss_backward.bytes),
        "step": predicted.phases["step"],
    }


@st.composite
def cells(draw: st.DrawFn) -> tuple[str, StepSpec]:
    """A model and a step that its class can take."""
    name = draw(st.sampled_from((*FUSED, *EAGER_ONLY, *WITH_ENCODER)))
    encodes = name in WITH_ENCODER
    names = tuple(sorted({linear.name for linear, _ in network(find_model(name), "sft").linears()}))
    method = draw(st.sampled_from(("full", "full in float32", "lora", "qlora", "int8")))
    checkpointing = draw(st.sampled_from(("none", "all", "every second", "offloaded")))
    adapter = Adapter(8, names, draw(st.sampled_from((0.0, 0.1))), "float32")
    learns_all = method.startswith("full")
    kernel = draw(st.sampled_from(kernels_of(name)))
    step = StepSpec(
        micro_batch=draw(st.integers(1, 3)),
        seq_len=draw(st.sampled_from((128, 256, 384))),
        weight_dtype="float32" if method == "full in float32" else "bfloat16",
        adapter=None if learns_all else adapter,
        quantization={"qlora": "nf4", "int8": "int8"}.get(method),
        double_quant=method == "qlora",
        autocast=None if method == "full" else "bfloat16",
        attention=kernel,
        expand_kv=kernel == "efficient",
        loss="full" if encodes else draw(st.sampled_from(("full", "full_inplace", "fused", "liger", "chunked"))),
        checkpointing=checkpointing != "none",
        checkpoint_every=2 if checkpointing == "every second" else 1,
        checkpoint_offload=checkpointing == "offloaded",
        kernels="foak" if method in ("lora", "qlora") and not encodes and draw(st.booleans()) else "torch",
        target_len=draw(st.sampled_from((32, 64))) if encodes else None,
    )
    return name, step


def kernels_of(name: str) -> tuple[AttentionKernel, ...]:
    """The kernels that a model's class can end in, and that are compared."""
    if name in EAGER_ONLY:
        return ("eager",)
    if name in WITH_ENCODER:
        return ("efficient",)
    drops_attention = any("attention" in block.dropout for block in network(find_model(name), "sft").blocks)
    return ("flash", "efficient", "eager") if drops_attention else ("flash", "efficient", "eager", "math")


# A trace takes seconds, so a failing cell is shown as it was drawn.
@settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(cells())
def test_the_peak_is_that_of_the_trace(cell: tuple[str, StepSpec]):
    from calibration.trace.model_config import transformers_config
    from calibration.trace.step_trace import trace

    name, step = cell
    model = small(name)
    traced, predicted = trace(transformers_config(model), step).peaks(), phases(model, step)
    assert max(predicted.values()) == pytest.approx(max(traced.values()), rel=TOLERANCE)
    for phase, peak in predicted.items() if step.loss in ("full", "fused") and name not in EAGER_ONLY else ():
        assert peak == pytest.approx(traced[phase], rel=TOLERANCE), phase


@pytest.mark.parametrize(
    ("name", "method"), list(zip((*FUSED, *EAGER_ONLY, *WITH_ENCODER), cycle(("full", "lora", "qlora")), strict=False))
)
def test_the_same_tensors_are_saved_by_name(name: str, method: str):
    from calibration.parity import named_step, saved_pairs

    model = small(name)
    step = named_step(model, method, kernels_of(name)[0], False, 2, 256)
    pairs = saved_pairs(model, replace(step, target_len=64 if name in WITH_ENCODER else None))
    assert len(pairs) > 10
    assert [pair for pair in pairs if pair.closed_form is None or pair.trace is None] == []


@pytest.mark.parametrize(("name", "method"), [("olmo2-1b", "qlora"), ("smollm3-3b", "full")])
def test_logits_that_are_handed_on_in_float32_are_the_peak_of_the_loss_in_place(name: str, method: str):
    from calibration.parity import named_step
    from calibration.trace.model_config import transformers_config
    from calibration.trace.step_trace import trace

    model = small(name)
    step = replace(named_step(model, method, "flash", True, 2, 256), loss="full_inplace", autocast="bfloat16")
    step = replace(step, weight_dtype="float32" if method == "full" else "bfloat16")
    traced = trace(transformers_config(model), step).peaks()["forward"]
    assert phases(model, step)["forward"] == pytest.approx(traced, rel=0.01)


@pytest.mark.parametrize(("method", "checkpointing"), [("full", False), ("lora", True), ("qlora", False)])
def test_odds_ratios_peak_as_in_the_trace(method: str, checkpointing: bool):
    from calibration.parity import named_step
    from calibration.trace.model_config import transformers_config
    from calibration.trace.step_trace import trace

    model = small("llama2-7b")
    step = named_step(model, method, "efficient", checkpointing, 4, 128)
    step = replace(step, objective="orpo", loss="odds_ratio", masked=True)
    traced, predicted = trace(transformers_config(model), step).peaks(), phases(model, step)
    for phase, peak in predicted.items():
        assert peak == pytest.approx(traced[phase], rel=TOLERANCE), phase
    assert max(predicted.values()) == pytest.approx(max(traced.values()), rel=0.005)


def test_a_tensor_that_only_one_side_has_is_named():
    from calibration.parity import Pair, SavedTensor, matched

    norm, extra = SavedTensor("norm", "x as 32 bit", 2048), SavedTensor("q_proj", "q_proj", 1024)
    traced = SavedTensor("norm", "_to_copy", 2048)
    assert matched([norm, extra], [traced]) == [Pair(norm, traced), Pair(extra, None)]
