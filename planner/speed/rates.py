"""The facts behind the speed model: profiles/speed.toml, read and checked."""

import tomllib
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

import profiles
from planner.config.run_config import Dtype
from planner.step.step_spec import AttentionKernel, StepLoss
from profiles.errors import UnsupportedError
from profiles.gpu import Flops, GpuProfile

RATES_FILE = Path(profiles.__path__[0]) / "speed.toml"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MeasuredProducts(Flops):
    """FLOP/s of large matrix products that torch reached on these cards."""

    gpus: tuple[str, ...]
    source: str


class Products(_Facts):
    """Rates of matrix products."""

    unmeasured_share: float = Field(gt=0, lt=1, description="of the spec, on a card that nobody measured")
    source: str
    measured: tuple[MeasuredProducts, ...]
    sources: dict[str, str]


class Expectation(_Facts):
    """A value before any run was looked at, and how far off it may be, as a share of it."""

    value: float = Field(gt=0)
    spread: float = Field(gt=0)


class Expected(_Facts):
    """What is known beforehand of what `profiles.fitted.Efficiencies` are."""

    product: Expectation
    attention: Expectation
    bandwidth: Expectation
    dequantization: Expectation
    launch_seconds: Expectation
    source: str


class Passes(_Facts):
    """Reads and writes of an activation, by operator."""

    norm: float = Field(description="of a norm that computes in float32, in the dtype of the model")
    norm_float32: float = Field(description="of the same, in float32")
    plain_norm: float = Field(description="of a norm in one kernel")
    residual: float = Field(description="of an addition to the residual stream")
    rotary: float = Field(description="of rotary positions, an element of queries and keys")
    gated_activation: float = Field(description="an element between the projections of a gated MLP")
    plain_activation: float = Field(description="the same of a plain MLP")
    attention_output: float = Field(description="of the copy that joins the heads")
    adapter_input: float = Field(description="of the input of an adapted module")
    adapter_dropout: float = Field(description="more of the same with dropout")
    adapter_output: float = Field(description="of the output of an adapted module")
    backward: float = Field(description="bytes of a backward pass over those of a forward pass")
    source: str


class Stored(_Facts):
    """Bytes moved, forward and backward together."""

    logit: dict[StepLoss, float] = Field(description="a logit, by loss")
    score: dict[AttentionKernel, float] = Field(description="an attention score, by kernel that stores them")
    int8_input: float = Field(description="an element that enters an int8 product, forward only")
    int8_output: float = Field(description="an element that leaves an int8 product, forward only")
    source: str


class Moved(_Facts):
    """What an optimizer reads and writes for each trainable parameter."""

    names: tuple[str, ...]
    passes: float = Field(description="over tensors of the dtype of the parameter")
    state_bytes: float = Field(description="of states of another dtype")
    paged: bool = Field(False, description="the states lie in host memory and travel for each step")


class OptimizerTraffic(_Facts):
    """Traffic of one optimizer step."""

    clipping_passes: float = Field(description="over the gradients, to scale them to max_grad_norm")
    source: str
    moved: tuple[Moved, ...]

    def moved_by(self, optimizer: str) -> Moved:
        """The row of `optimizer`. Raises UnsupportedError if there is none."""
        for row in self.moved:
            if optimizer in row.names:
                return row
        known = ", ".join(name for row in self.moved for name in row.names)
        raise UnsupportedError(f"optim is {optimizer!r}, whose speed is not described", hint=f"described are {known}")


class Launches(_Facts):
    """Kernels that the CPU starts."""

    per_layer: float = Field(description="forward pass of a layer")
    per_adapter: float = Field(description="more for an adapted module")
    per_quantized_linear: float = Field(description="more for a quantized module")
    backward: float = Field(description="kernels of a backward pass over those of a forward pass")
    source: str


class HostLink(_Facts):
    """The way between card and host."""

    bytes_per_s: float = Field(gt=0)
    source: str


class SpeedFacts(_Facts):
    """All tables of speed.toml."""

    products: Products
    expected: Expected
    passes: Passes
    stored: Stored
    optimizer: OptimizerTraffic
    launches: Launches
    host_link: HostLink

    def product_rate(self, gpu: GpuProfile, dtype: Dtype) -> float | None:
        """FLOP/s of large products of `dtype` on `gpu`, measured or expected; None if not even the spec is known."""
        field = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[dtype]
        for row in self.products.measured:
            if gpu.name in row.gpus and (rate := getattr(row, field)) is not None:
                return float(rate)
        peak = getattr(gpu.flops, field)
        return None if peak is None else peak * self.products.unmeasured_share


@cache
def speed_facts() -> SpeedFacts:
    """The facts of speed.toml, read once."""
    return SpeedFacts.model_validate(tomllib.loads(RATES_FILE.read_text("utf-8")))
