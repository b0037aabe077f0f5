"""The operators of a transformer layer as a tape sees them: what each makes, keeps and needs while it runs.

Sources: Transformers 5.23 modeling files, PEFT 0.21 `tuners/lora/{layer,bnb}.py`, bitsandbytes 0.50
`autograd/_functions.py`, torch 2.13 autograd formulas (`tools/autograd/derivatives.yaml`); for fused kernels
fms-acceleration, `plugins/fused-ops-and-kernels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from planner.config.run_config import DTYPE_BYTES
from planner.memory.tape import Op, Tape, Tensor, rounded
from planner.step.step_spec import Adapter, StepSpec
from profiles.architecture import Linear, Norm

FLOAT16, FLOAT32 = 2, 4
INDEX = 8
"""Bytes of one int64: a token, a position, the number of a row."""

ROW_STATISTICS = 4
"""Bytes of one float32 number a row: a mean, a reciprocal deviation, a log-sum-exp."""

FUSED_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("o_proj",))
"""Layers with adapters that fms-acceleration computes in one function (`fused_ops/unsloth_lora/bnb/fast_lora.py`)."""

SELF_CONTAINED_ACTIVATIONS = {"silu", "swish", "gelu", "gelu_pytorch_tanh", "gelu_python_tanh", "relu", "bloom_gelu"}
"""Activations that are one function of autograd, which keeps its input only, or as relu does its result. Others are
spelled out in Python."""


@dataclass(slots=True)
class Operators:
    """Writes the operators of one step onto a tape.

    `tokens` is batch x seq_len, `trainable` is true when the base weights learn, `decodes` behind an encoder.
    """

    step: StepSpec
    tape: Tape
    trainable: bool
    has_position_biases: bool = False
    decodes: bool = False
    base_size: int = field(init=False)
    norm_size: int = field(init=False)
    autocast_size: int | None = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.base_size = DTYPE_BYTES[self.step.base_dtype]
        self.norm_size = FLOAT32 if self.step.float32_norms else self.base_size
        self.autocast_size = DTYPE_BYTES[self.step.autocast] if self.step.autocast else None
        self.tokens = self.step.num_tokens

    def cast(self, x: Tensor, itemsize: int) -> Tensor:
        """`x` in another element size; itself where it has that size."""
        if x.itemsize == itemsize:
            return x
        out = Tensor(f"{x.name} as {itemsize * 8} bit", x.elements, itemsize)
        return self.tape.add(Op("to", (x,), (out,)))

    def add(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a + b in the larger element size; both get the gradient as it comes."""
        size = max(a.itemsize, b.itemsize)
        out = Tensor(name, max(a.elements, b.elements), size)
        self.tape.add(Op(name, (self._promoted(a, size), self._promoted(b, size)), (out,), passes_grad=True))
        self.tape.hold(a, b)
        return out

    def _promoted(self, x: Tensor, itemsize: int) -> Tensor:
        """`x` as it enters an operator of larger elements: type promotion costs nothing forward, a cast backward."""
        if x.itemsize == itemsize:
            return x
        return self.tape.add(Op("promote", (x,), (Tensor(f"{x.name} promoted", x.elements, itemsize, base=x),)))

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        """A normalization of `x`; autograd keeps its float32 input where the module computes in float32."""
        with self.tape.inside(norm.name):
            if self.step.kernels == "foak" and norm.kind == "rms_norm":
                return self._fused_norm(norm, x)
            return self._layer_norm(norm, x) if norm.kind == "layer_norm" else self._rms_norm(norm, x)

    def _rms_norm(self, norm: Norm, x: Tensor) -> Tensor:
        """Transformers' own norm, spelled out in Python."""
        wide = self.cast(x, FLOAT32) if norm.upcast else x
        rows = x.elements // norm.size
        inverse = Tensor(f"{norm.name} deviation", rows, ROW_STATISTICS)
        square = Tensor(f"{norm.name} square", x.elements, wide.itemsize)
        self.tape.add(Op(square.name, (wide,), (square,), (wide,), backward_scratch=2 * wide.bytes))
        self.tape.add(Op(f"{norm.name} rsqrt", (square,), (inverse,), (inverse,)))
        scaled = Tensor(f"{norm.name} normalized", x.elements, wide.itemsize)
        read = x if norm.scales_input else wide
        self.tape.add(
            Op(f"{norm.name} scale", (read, inverse), (scaled,), (read, inverse), backward_scratch=scaled.bytes)
        )
        factor = scaled if norm.float32_scale else self.cast(scaled, x.itemsize)
        self.tape.hold(wide)
        if not norm.weight:
            return factor
        out = Tensor(norm.name, x.elements, max(factor.itemsize, self.norm_size))
        scale = (Tensor(f"{norm.name} 1 + weight", norm.size, FLOAT32, False),) if norm.adds_one else ()
        self.tape.add(
            Op(
                norm.name,
                (factor,),
                (out,),
                saved=((factor,) if self.trainable else ()) + scale,
                backward_scratch=out.bytes if self.trainable else 0,
                parameter_gradients=self.gradient_bytes(norm.num_parameters),
            )
        )
        return self.cast(out, x.itemsize) if norm.float32_scale else out

    def _fused_norm(self, norm: Norm, x: Tensor) -> Tensor:
        """The kernel of fms-acceleration, which keeps its input as it is and writes over the gradient that comes."""
        sums = Tensor(f"{norm.name} deviation", x.elements // norm.size, ROW_STATISTICS)
        out = Tensor(norm.name, x.elements, x.itemsize)
        return self.tape.add(Op(norm.name, (x,), (out,), (x, sums), passes_grad=True))

    def _layer_norm(self, norm: Norm, x: Tensor) -> Tensor:
        """Torch's own layer norm, which autocast runs in float32 on a GPU and leaves alone on a CPU."""
        wide = self.cast(x, FLOAT32) if self.autocast_size and self.step.device == "cuda" else x
        mean, deviation = (
            Tensor(f"{norm.name} {name}", x.elements // norm.size, ROW_STATISTICS) for name in ("mean", "deviation")
        )
        out = Tensor(norm.name, x.elements, wide.itemsize)
        gradients = self.gradient_bytes(norm.num_parameters)
        # Autocast also makes float32 copies of 16-bit weights.
        copies = tuple(
            Tensor(f"{norm.name} {name} as 32 bit", norm.size, FLOAT32, False)
            for name, there in (("weight", norm.weight), ("bias", norm.bias))
            if there and self.norm_size < FLOAT32 <= wide.itemsize
        )
        saved = (wide, mean, deviation, *copies)
        return self.tape.add(Op(norm.name, (wide,), (out,), saved, parameter_gradients=gradients))

    def linears(self, linears: Sequence[Linear], sources: Sequence[Tensor]) -> list[Tensor]:
        """Projections one after the other, or one fused function of all where the step has such kernels."""
        if self._fuses_adapters(linears):
            return self._fused_adapters(linears, sources[0])
        return [self.linear(linear, source) for linear, source in zip(linears, sources, strict=True)]

    def linear(self, linear: Linear, x: Tensor) -> Tensor:
        """A projection with whatever the step makes of it: quantized base, adapter, casts of autocast."""
        with self.tape.inside(linear.name):
            out = self._linear(linear, x)
            self.tape.hold(x)
            return out

    def _linear(self, linear: Linear, x: Tensor) -> Tensor:
        adapter = self.step.adapter
        quantized = self.step.quantization is not None and linear.quantizable
        result = self._quantized(linear, x) if quantized else self.plain(linear, x)
        if adapter is None or linear.name not in adapter.targets:
            return result
        if quantized:
            clone = Tensor(f"{linear.name} clone", result.elements, result.itemsize)
            result = self.tape.add(Op(f"{linear.name} clone", (result,), (clone,), passes_grad=True))
        return self._adapted(adapter, linear, x, result, quantized)

    def plain(self, linear: Linear, x: Tensor) -> Tensor:
        """A projection by a matrix that is neither quantized nor adapted, as the head's is."""
        size = self.autocast_size or x.itemsize
        narrow = self.cast(x, size)
        out = Tensor(linear.name, x.elements // linear.in_features * linear.out_features, size)
        copy = self.weight_copy(linear)
        saved = ((narrow,) if self.trainable else ()) + copy
        return self.tape.add(
            Op(
                linear.name,
                (narrow,),
                (out,),
                saved=saved,
                backward_scratch=sum(c.bytes for c in copy) if self.trainable else 0,
                parameter_gradients=self.gradient_bytes(linear.num_parameters),
                cached=copy if self.trainable else (),
            )
        )

    def weight_copy(self, linear: Linear) -> tuple[Tensor, ...]:
        """The 16-bit copy that autocast makes of a float32 weight."""
        if self.autocast_size is None or self.autocast_size == self.base_size:
            return ()
        return (Tensor(f"{linear.name} weight as {self.step.autocast}", linear.num_weights, self.autocast_size, False),)

    def _quantized(self, linear: Linear, x: Tensor) -> Tensor:
        """A bitsandbytes layer: the weight is dequantized while it is used, forward and backward."""
        if self.step.quantization == "int8":
            return self._int8(linear, x)
        size = DTYPE_BYTES[self.step.compute_dtype]
        narrow = self.cast(x, size)
        out = Tensor(linear.name, x.elements // linear.in_features * linear.out_features, size)
        scratch = rounded(linear.num_weights * size)
        return self.cast(self.tape.add(Op(linear.name, (narrow,), (out,), (), scratch, scratch)), x.itemsize)

    def _int8(self, linear: Linear, x: Tensor) -> Tensor:
        """LLM.int8, which autocast leaves alone: it keeps its input as an attribute of the autograd function.

        The input goes to float16 and 8 bit after a look for outliers; the products add up in int32 and float16.
        """
        out = Tensor(linear.name, x.elements // linear.in_features * linear.out_features, x.itemsize)
        in_float16 = self.step.compute_dtype == "float16" and x.itemsize == FLOAT16
        copy = 0 if in_float16 else rounded(x.elements * FLOAT16)
        quantizing = copy + 2 * rounded(x.elements) + rounded(x.elements * FLOAT16) - out.bytes
        sums = rounded(out.elements * FLOAT32) + (0 if in_float16 else rounded(out.elements * FLOAT16))
        scratch = max(quantizing, rounded(x.elements) + sums)
        weight = rounded(linear.num_weights * x.itemsize)
        return self.tape.add(Op(linear.name, (x,), (out,), (x,), scratch, weight, unhooked=(x,)))

    def _adapted(self, adapter: Adapter, linear: Linear, x: Tensor, result: Tensor, quantized: bool) -> Tensor:
        """result + B(A(dropout(x))) * scale, with the casts that PEFT and autocast make on the way."""
        adapter_size = DTYPE_BYTES[adapter.dtype]
        size = self.autocast_size or adapter_size
        # PEFT leaves it to autocast to cast what a quantized layer reads, if it is that of a GPU.
        autocasts = self.autocast_size is not None and quantized and self.step.device == "cuda"
        if not autocasts:
            x = self.cast(x, adapter_size)
        if adapter.dropout:
            x = self.dropout(x)
        narrow = self.cast(x, size)
        low = self._adapter_matrix(adapter, f"{linear.name} lora_A", narrow, linear.in_features, adapter.r)
        high = self._adapter_matrix(adapter, f"{linear.name} lora_B", low, adapter.r, linear.out_features)
        scaled = Tensor(f"{linear.name} lora scaled", result.elements, size)
        self.tape.add(Op(scaled.name, (high,), (scaled,)))
        if quantized and not autocasts:
            scaled = self.cast(scaled, result.itemsize)
        total = self.add(f"{linear.name} with adapter", result, scaled)
        self.tape.hold(x)
        return self.cast(total, result.itemsize)

    def _adapter_matrix(self, adapter: Adapter, name: str, x: Tensor, in_features: int, out_features: int) -> Tensor:
        """One of the two products of an adapter."""
        elements = in_features * out_features
        adapter_size = DTYPE_BYTES[adapter.dtype]
        copied = x.itemsize != adapter_size
        copy = (Tensor(f"{name} weight", elements, x.itemsize, False),) if copied else ()
        out = Tensor(name, x.elements * out_features // in_features, x.itemsize)
        gradient = rounded(elements * adapter_size)
        return self.tape.add(
            Op(name, (x,), (out,), (x, *copy), parameter_gradients=gradient, cached=copy if self.autocast_size else ())
        )

    def _fuses_adapters(self, linears: Sequence[Linear]) -> bool:
        """Whether fms-acceleration makes one function of these layers: they are quantized and all have adapters."""
        adapter = self.step.adapter
        return (
            self.step.kernels == "foak"
            and self.step.quantization is not None
            and adapter is not None
            and tuple(linear.name for linear in linears) in FUSED_TOGETHER
            and {linear.name for linear in linears} <= set(adapter.targets)
        )

    def _fused_adapters(self, linears: Sequence[Linear], x: Tensor) -> list[Tensor]:
        """Quantized layers with adapters as one function, which keeps `x` and each of its dropouts, but no mask.

        The gradient of `x` is written over `x`, if there are several layers. Products and what was dropped are added to
        it one by one.
        """
        adapter = self.step.adapter
        assert adapter is not None
        size = DTYPE_BYTES[adapter.dtype]
        outs = tuple(Tensor(linear.name, self.tokens * linear.out_features, x.itemsize) for linear in linears)
        dropped = [Tensor(f"{x.name} dropped", x.elements, x.itemsize) for _ in linears if adapter.dropout]
        weight = max(rounded(linear.num_weights * x.itemsize) for linear in linears)
        learns = sum(linear.in_features + linear.out_features for linear in linears) * adapter.r
        written_over = x.bytes if len(linears) > 1 else 0
        self.tape.add(
            Op(
                " + ".join(out.name for out in outs),
                (x,),
                outs,
                saved=(x, *dropped),
                scratch=max(weight, max(out.bytes for out in outs)),
                backward_scratch=max(weight + x.bytes, 2 * x.bytes + rounded(x.elements)) - written_over,
                parameter_gradients=rounded(learns * size),
            )
        )
        return list(outs)

    def softcap(self, x: Tensor) -> Tensor:
        """tanh(x / cap) * cap; autograd keeps the tanh."""
        tanh = Tensor(f"{x.name} tanh", x.elements, x.itemsize)
        self.tape.add(Op("softcap", (x,), (tanh,), (tanh,), scratch=x.bytes))
        return self.tape.add(Op("softcap scale", (tanh,), (Tensor(f"{x.name} capped", x.elements, x.itemsize),)))

    def dropout(self, x: Tensor) -> Tensor:
        """Dropout keeps which elements it dropped: a byte each on a GPU, a factor of the input's dtype on a CPU."""
        mask = Tensor(f"{x.name} dropout mask", x.elements, 1 if self.step.device == "cuda" else x.itemsize, False)
        out = Tensor(f"{x.name} dropped", x.elements, x.itemsize)
        return self.tape.add(Op("dropout", (x,), (out,), saved=(mask,)))

    def activation(self, name: str, x: Tensor) -> Tensor:
        """The non-linearity; those that are spelled out in Python cost about what the GELU with a tanh does."""
        if name in SELF_CONTAINED_ACTIVATIONS:
            out = Tensor(name, x.elements, x.itemsize)
            # Bloom's computes term by term inside: four are alive at once on the way there, five on the way back.
            terms = (3 * x.bytes, 4 * x.bytes) if name == "bloom_gelu" else (0, 0)
            return self.tape.add(Op(name, (x,), (out,), (out if name == "relu" else x,), *terms))
        return self._tanh_gelu(name, x)

    def _tanh_gelu(self, name: str, x: Tensor) -> Tensor:
        """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), operator by operator."""
        half = self.scaled(x, f"{name} half")
        # On a GPU, autocast takes powers in float32.
        wide = self.cast(x, FLOAT32) if self.autocast_size and self.step.device == "cuda" else x
        cube = Tensor(f"{name} cube", x.elements, wide.itemsize)
        self.tape.add(Op("pow", (wide,), (cube,), (wide,), backward_scratch=2 * wide.bytes))
        inner = self.add(f"{name} inner", x, self.scaled(cube, f"{name} scaled cube"))
        argument = self.scaled(inner, f"{name} argument")
        tanh, shifted = (Tensor(f"{name} {part}", x.elements, wide.itemsize) for part in ("tanh", "1 + tanh"))
        self.tape.add(Op("tanh", (argument,), (tanh,), (tanh,)))
        self.tape.add(Op("1 + tanh", (tanh,), (shifted,), passes_grad=True))
        out = self.multiply(name, half, shifted)
        self.tape.hold(x)
        return out

    def scaled(self, x: Tensor, name: str) -> Tensor:
        """`x` times a number, of which autograd keeps nothing."""
        return self.tape.add(Op(name, (x,), (Tensor(name, x.elements, x.itemsize),)))

    def multiply(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """a * b in the larger element size; autograd keeps both."""
        size = max(a.itemsize, b.itemsize)
        a, b = self._promoted(a, size), self._promoted(b, size)
        return self.tape.add(Op(name, (a, b), (Tensor(name, a.elements, size),), (a, b)))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions: x cos + rotate_half(x) sin. Only the shared cosines and sines are kept."""
        if self.step.kernels == "foak":
            turned = Tensor(f"{x.name} rotated", x.elements, x.itemsize, base=x)
            return self.tape.add(Op(turned.name, (x,), (turned,), passes_grad=True))
        out = Tensor(f"{x.name} rotated", x.elements, x.itemsize)
        return self.tape.add(Op(out.name, (x,), (out,), scratch=2 * x.bytes, backward_scratch=2 * x.bytes))

    def gradient_bytes(self, num_parameters: int) -> int:
        """Bytes of the gradient of `num_parameters` base weights, if they learn."""
        return rounded(num_parameters * self.base_size) if self.trainable and num_parameters else 0
