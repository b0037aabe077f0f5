"""How long one training step takes: a roofline over counted work, with the rates of profiles/speed.toml.

Kernels run one after another, so their times add up. A matrix product takes as long as its arithmetic or as reading
its weights, whichever is longer; the operators between products as long as the bytes they move. The CPU starts kernels
ahead of time: if it is slower than all of them together, it sets the pace.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

from planner.config.run_config import DTYPE_BYTES, Dtype
from planner.memory.sharding import at_work
from planner.speed.communication import communicate
from planner.speed.rates import SpeedFacts, speed_facts
from planner.speed.work import Work, count_work
from planner.step.step_spec import Sharding, StepSpec
from profiles.fitted import Efficiencies, fitted
from profiles.gpu import GpuProfile
from profiles.interconnect import links_of
from profiles.model import ModelProfile

Part = Literal[
    "products",
    "attention",
    "memory traffic",
    "dequantization",
    "optimizer",
    "host link",
    "kernel launches",
    "communication",
]

BACKWARD_SHARE = 2 / 3
"""Of a micro-batch's time, which is left to hide the reduction of gradients behind; with checkpointing it is more."""


@dataclass(frozen=True, slots=True)
class SpeedEstimate:
    """Time of one optimizer step and what it is made of, in seconds.

    `parts` add up to `seconds_per_step`; `bound` is the largest. `tokens_per_second` counts padding as well.
    """

    seconds_per_micro_batch: float
    seconds_per_step: float
    tokens_per_second: float
    parts: dict[Part, float]
    bound: Part

    def scaled(self, factor: float) -> "SpeedEstimate":
        """The same at `factor` times the speed."""
        return SpeedEstimate(
            seconds_per_micro_batch=self.seconds_per_micro_batch / factor,
            seconds_per_step=self.seconds_per_step / factor,
            tokens_per_second=self.tokens_per_second * factor,
            parts={name: seconds / factor for name, seconds in self.parts.items()},
            bound=self.bound,
        )


def step_time(
    model: ModelProfile,
    step: StepSpec,
    gpu: GpuProfile | None,
    accumulation: int = 1,
    network_bytes_per_s: float | None = None,
    reached: Efficiencies | None = None,
) -> SpeedEstimate | None:
    """The time of an optimizer step of `accumulation` micro-batches; None if the card's rates are not known.

    Where several cards share the step, tokens are those of all, and what they send each other hides behind the work of
    a micro-batch as far as that is long enough; `network_bytes_per_s` is the rate of one machine. No run on several
    cards was compared but those of `tests/planner/speed/test_communication.py`.

    Recomputation is counted for whole layers; torch stops before the last product of one, which saves up to 7 % of a
    step. There is no estimate for a CPU. What share of its rates a card reaches is fitted (fitted.toml, with the error
    and the runs); `reached` stands in its place.
    """
    facts = speed_facts()
    whole, step = step, at_work(step)
    pace = _pace(facts, step, gpu, whole.sharding, reached)
    if pace is None or gpu is None:
        return None
    work = count_work(model, step.adapter.targets if step.adapter else (), step.objective)
    micro: dict[Part, float] = {
        "products": _product_seconds(work, step, pace),
        "attention": _attention_seconds(work, step, pace, whole.seq_len),
        "memory traffic": _traffic_bytes(work, step, facts) / pace.bandwidth,
        "dequantization": _dequantized_bytes(work, step) / pace.dequantization,
        "host link": _offloaded_bytes(work, step) / facts.host_link.bytes_per_s,
    }
    launches = _num_kernels(work, step, facts) * pace.launch_seconds
    if launches > sum(micro.values()):
        micro["kernel launches"] = launches - sum(micro.values())
    optimizer = _optimizer_seconds(work, step, facts, accumulation, pace)
    if whole.sharding:
        optimizer = 0.0 if whole.sharding.states_on_host else optimizer / whole.sharding.state_shards
    seconds = sum(micro.values())
    parts: dict[Part, float] = {name: part * accumulation for name, part in micro.items() if part} | {
        "optimizer": optimizer
    }
    talk = communicate(model, whole, links_of(gpu, network_bytes_per_s))
    seconds += max(0.0, talk.overlapped - seconds) + talk.exposed
    waits = accumulation * (seconds - sum(micro.values())) + max(0.0, talk.last_overlapped - BACKWARD_SHARE * seconds)
    if waits + talk.per_step:
        parts["communication"] = waits + talk.per_step
    total = sum(parts.values())
    groups = whole.sharding.data_parallel_size if whole.sharding else 1
    return SpeedEstimate(
        seconds_per_micro_batch=seconds,
        seconds_per_step=total,
        tokens_per_second=whole.num_tokens * accumulation * groups / total,
        parts=parts,
        bound=max(parts, key=parts.__getitem__),
    )


@dataclass(frozen=True, slots=True)
class _Pace:
    """Rates as reached in training: FLOP/s of products, bytes/s of other operators."""

    products: float
    adapter_products: float
    attention: float
    bandwidth: float
    dequantization: float
    launch_seconds: float

    def product_seconds(self, flops: float, weight_bytes: float) -> float:
        """Time of a product with a weight matrix, which is read once."""
        return max(flops / self.products, weight_bytes / self.bandwidth)


def _pace(
    facts: SpeedFacts,
    step: StepSpec,
    gpu: GpuProfile | None,
    sharding: Sharding | None,
    reached: Efficiencies | None,
) -> _Pace | None:
    """The rates of one card; cards that split each product are as fast as one of that many times the rate."""
    if gpu is None or gpu.bandwidth_bytes_per_s is None:
        return None
    rate = facts.product_rate(gpu, step.compute_dtype)
    adapter_dtype = step.autocast or (step.adapter.dtype if step.adapter else step.weight_dtype)
    adapter_rate = facts.product_rate(gpu, adapter_dtype)
    if rate is None or adapter_rate is None:
        return None
    split = sharding.tensor_parallel_size if sharding else 1
    shares = reached or fitted().efficiencies(gpu.name, step.compute_dtype)
    return _Pace(
        products=split * rate * shares.product.value,
        adapter_products=adapter_rate * shares.product.value,
        attention=split * rate * shares.attention.value,
        bandwidth=gpu.bandwidth_bytes_per_s * shares.bandwidth.value,
        dequantization=gpu.bandwidth_bytes_per_s * shares.dequantization.value,
        launch_seconds=shares.launch_seconds.value,
    )


def _recomputed(work: Work, step: StepSpec) -> float:
    """Share of the layers that run forward a second time."""
    return ceil(work.num_layers / step.checkpoint_every) / work.num_layers if step.checkpointing else 0.0


def _asked(step: StepSpec) -> int:
    """Passes without gradients: of the reference, and with kto of mismatched answers through both as well."""
    reference = int(step.reference != "none")
    return 2 * reference + 1 if step.objective == "kto" else reference


def _forward_again(work: Work, step: StepSpec) -> float:
    """Forward passes of the layers beyond the first."""
    return _recomputed(work, step) + _asked(step)


def _product_seconds(work: Work, step: StepSpec, pace: _Pace) -> float:
    """Forward, recomputation, input gradients and, where weights are trained, weight gradients; layers and head."""
    trained = step.adapter is None
    dtype_bytes = DTYPE_BYTES[step.compute_dtype]
    layer_passes = 2 + _forward_again(work, step) + trained
    head_passes = 2 + _asked(step) + (step.loss in ("fused", "chunked")) + trained
    layers = pace.product_seconds(2 * work.active_weights * step.num_tokens, work.weights * dtype_bytes)
    head = pace.product_seconds(2 * work.head_weights * step.num_tokens, work.head_weights * dtype_bytes)
    return layer_passes * layers + head_passes * head + _adapter_flops(work, step) / pace.adapter_products


def _adapter_flops(work: Work, step: StepSpec) -> float:
    """Both matrices of all adapters; one product forward, two backward."""
    if step.adapter is None:
        return 0.0
    return 2 * work.adapter_width * step.adapter.r * step.num_tokens * (3 + _recomputed(work, step))


def _attention_seconds(work: Work, step: StepSpec, pace: _Pace, keys: int) -> float:
    """Scores and weighted values, of rows of `keys` tokens.

    Fused kernels skip what causality masks; their backward recomputes the scores.
    """
    fused = step.attention in ("flash", "efficient")
    passes = 1 + _forward_again(work, step) + (2.5 if fused else 2.0)
    flops = sum(2 * group.width * group.keys(keys, skip_masked=fused) for group in work.attentions)
    return passes * step.num_tokens * flops / pace.attention


def _traffic_bytes(work: Work, step: StepSpec, facts: SpeedFacts) -> float:
    """Bytes that norms, activations, residual additions, adapters, casts and the loss move in one micro-batch."""
    passes = facts.passes
    itemsize = DTYPE_BYTES[step.compute_dtype]
    stream = DTYPE_BYTES[step.base_dtype]
    token_bytes = (
        work.float32_norms * (passes.norm * stream + passes.norm_float32 * 4)
        + work.plain_norms * passes.plain_norm * stream
        + work.residuals * passes.residual * stream
        + work.rotary * passes.rotary * itemsize
        + work.gated_activations * passes.gated_activation * itemsize
        + work.plain_activations * passes.plain_activation * itemsize
        + work.attention_outputs * passes.attention_output * itemsize
        + _adapter_token_bytes(work, step, facts)
    )
    runs = 1 + _forward_again(work, step) + passes.backward
    quantized = _int8_token_bytes(work, step, facts) * step.num_tokens * (1 + _forward_again(work, step))
    logits = facts.stored.logit[step.loss] * work.vocabulary * step.num_tokens
    scores, casts = _score_bytes(work, step, facts), _cast_bytes(work, step)
    return runs * step.num_tokens * token_bytes + quantized + scores + logits + casts


def _score_bytes(work: Work, step: StepSpec, facts: SpeedFacts) -> float:
    """Bytes of attention scores, of which some kernels keep a tensor of (batch, heads, seq_len, seq_len)."""
    stored = facts.stored.score.get(step.attention, 0.0)
    scores = sum(group.num_heads for group in work.attentions) * step.num_tokens * step.seq_len
    return scores * stored * (3 + _forward_again(work, step)) / 3


def _adapter_token_bytes(work: Work, step: StepSpec, facts: SpeedFacts) -> float:
    if step.adapter is None:
        return 0.0
    passes = facts.passes
    itemsize = DTYPE_BYTES[step.autocast or step.adapter.dtype]
    inputs = passes.adapter_input + (passes.adapter_dropout if step.adapter.dropout else 0)
    return itemsize * (work.adapter_inputs * inputs + work.adapter_outputs * passes.adapter_output)


def _int8_token_bytes(work: Work, step: StepSpec, facts: SpeedFacts) -> float:
    """LLM.int8() rounds the input of each product to int8, and scales the int32 result back."""
    if step.quantization != "int8":
        return 0.0
    return work.linear_inputs * facts.stored.int8_input + work.linear_outputs * facts.stored.int8_output


def _cast_bytes(work: Work, step: StepSpec) -> float:
    """Autocast copies float32 weights in each forward pass, and copies their gradients back."""
    if step.autocast in (None, step.weight_dtype) or step.weight_dtype != "float32" or step.quantization:
        return 0.0
    copy = DTYPE_BYTES["float32"] + DTYPE_BYTES[step.compute_dtype]
    return work.weights * copy * (1 + _forward_again(work, step) + (step.adapter is None))


def _dequantized_bytes(work: Work, step: StepSpec) -> float:
    """Bytes of reading packed weights and writing them in the dtype of the products, each time they are used."""
    if step.quantization is None:
        return 0.0
    packed = 1.0 if step.quantization == "int8" else 0.5
    weights = work.linear_weights + (work.weights - work.linear_weights if step.experts_quantized else 0)
    return weights * (packed + DTYPE_BYTES[step.compute_dtype]) * (2 + _forward_again(work, step))


def _offloaded_bytes(work: Work, step: StepSpec) -> float:
    """Bytes of checkpoints that travel to the host and back."""
    if not (step.checkpointing and step.checkpoint_offload):
        return 0.0
    checkpoints = ceil(work.num_layers / step.checkpoint_every)
    return 2 * checkpoints * step.num_tokens * work.hidden_size * DTYPE_BYTES[step.base_dtype]


def _num_kernels(work: Work, step: StepSpec, facts: SpeedFacts) -> float:
    """Kernels that the CPU starts in one micro-batch."""
    launches = facts.launches
    forward = (
        work.num_layers * launches.per_layer
        + (work.num_adapters * launches.per_adapter if step.adapter else 0)
        + (work.num_linears * launches.per_quantized_linear if step.quantization else 0)
    )
    return forward * (1 + _forward_again(work, step) + launches.backward)


def _optimizer_seconds(work: Work, step: StepSpec, facts: SpeedFacts, accumulation: int, pace: _Pace) -> float:
    """The update, clipping, and adding up the gradients of micro-batches. Paged states come over the host link."""
    dtype: Dtype = step.weight_dtype if step.adapter is None else step.adapter.dtype
    num_trained = work.num_parameters if step.adapter is None else work.adapter_width * step.adapter.r
    moved = facts.optimizer.moved_by(step.optimizer)
    accumulated = 3 * (accumulation - 1)
    passes = moved.passes + facts.optimizer.clipping_passes + accumulated
    states = moved.state_bytes / (facts.host_link.bytes_per_s if moved.paged else pace.bandwidth)
    return num_trained * (passes * DTYPE_BYTES[dtype] / pace.bandwidth + states)
