"""One configuration under judgement: its step, its memory, its verdict and its speed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from planner.config.run_config import RunConfig
from planner.data.lengths import DataLengths
from planner.memory.estimate import MemoryEstimate
from planner.memory.verdict import Verdict, verdict
from planner.search.request import Request
from planner.search.space import OPTIMIZERS, Lossiness, complexity
from planner.speed.step_time import SpeedEstimate, step_time
from planner.step.resolve import resolve_step
from planner.step.step_spec import StepSpec
from profiles.gpu import GpuProfile
from profiles.gpu_catalog import find_gpu
from profiles.model import ModelProfile

PACE_GPU = "A100-SXM4-80GB"
"""Where the speed of a card or a CPU is unknown, candidates are compared as this well measured card would run them."""


def needs_package(config: RunConfig) -> bool:
    """Whether `config` needs more than torch and the trainer."""
    return config.attn_implementation == "flash_attention_2"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration and what is predicted of it.

    `pace` orders candidates by speed and has no unit; 0 for one that does not fit. `tokens_per_second` counts no
    padding; None where the speed of the card is unknown. `padding_share` is the share of all tokens that are padding.
    """

    config: RunConfig
    step: StepSpec
    lossiness: Lossiness
    estimate: MemoryEstimate
    verdict: Verdict
    pace: float = 0.0
    speed: SpeedEstimate | None = None
    tokens_per_second: float | None = None
    padding_share: float = 0.0

    @property
    def complexity(self) -> tuple[bool, bool, bool]:
        """How much machinery its layout takes."""
        return complexity(self.config)

    @property
    def fetches_base(self) -> bool:
        """Whether a frozen base comes from host memory in each pass, which is far slower than to quantize it."""
        knobs = self.config.parallel
        return knobs is not None and knobs.offload == "parameters" and self.config.method != "full"

    @property
    def needs_package(self) -> bool:
        """Whether more must be installed than torch and the trainer."""
        return needs_package(self.config)

    @property
    def num_changes(self) -> int:
        """Settings that differ from the usual ones."""
        config = self.config
        return sum(
            (
                config.checkpoint_offload,
                config.checkpoint_every_n_layers > 1,
                config.optim != OPTIMIZERS[0],
                config.optim.startswith("paged"),
                config.loss != "fused",
                config.asks_reference_before,
            )
        )


class Judge:
    """Judges the configurations of one request."""

    def __init__(
        self, request: Request, estimator: Callable[[ModelProfile, StepSpec, GpuProfile | None], MemoryEstimate]
    ) -> None:
        self.usable = request.usable_bytes
        self.host = request.cluster.host_memory_bytes
        self._request = request
        # Configurations that differ on paper alone come to the same step.
        self._memory = cache(lambda step: estimator(request.model, step, request.gpu))
        self._real_lengths: dict[tuple[object, ...], tuple[float, float]] = {}

    def judge(self, config: RunConfig, lossiness: Lossiness) -> Candidate:
        """`config` with its memory and verdict, and its speed if it fits."""
        candidate = self.weigh(config, lossiness)
        return candidate if candidate.verdict == "no" else self._timed(candidate)

    def weigh(self, config: RunConfig, lossiness: Lossiness) -> Candidate:
        """`config` with its memory and verdict, whatever its speed."""
        request = self._request
        step = resolve_step(config, request.model, request.gpu)
        lesson = request.experience.lesson(request.gpu, config)
        memory = lesson.corrected(self._memory(step))
        fits = "no" if self.misses_host_memory(memory) else verdict(memory, self.usable)
        return Candidate(config, step, lossiness, memory, fits)

    def misses_host_memory(self, memory: MemoryEstimate) -> bool:
        """Whether the machine has less main memory than its processes need, as far as that is known."""
        return self.host is not None and memory.host_bytes > self.host

    def _timed(self, candidate: Candidate) -> Candidate:
        """`candidate` with its speed on rows as long as those of the data."""
        config = candidate.config
        tokens, real_share = self._lengths(config)
        step, lesson = candidate.step, self._request.experience.lesson(self._request.gpu, config)
        if tokens != config.max_length:
            step = replace(step, seq_len=max(1, round(step.seq_len * tokens / config.max_length)))
        speed = lesson.paced(self._step_time(config, step, self._request.gpu))
        compared = speed or self._step_time(config, step, _pace_gpu())
        return replace(
            candidate,
            pace=compared.tokens_per_second * real_share if compared else 0.0,
            speed=speed,
            tokens_per_second=speed.tokens_per_second * real_share if speed else None,
            padding_share=max(0.0, 1 - real_share),
        )

    def _step_time(self, config: RunConfig, step: StepSpec, gpu: GpuProfile | None) -> SpeedEstimate | None:
        """The time of a step, with its share of the pass before training that asks the reference once."""
        model, accumulation = self._request.model, config.gradient_accumulation_steps
        network = self._request.cluster.network_bytes_per_s
        found = step_time(model, step, gpu, accumulation, network)
        if found is None or not config.asks_reference_before:
            return found
        asking = step_time(model, replace(step, reference="adapter_off"), gpu, accumulation, network)
        assert asking is not None
        share = (asking.seconds_per_step - found.seconds_per_step) / self._request.epochs(config)
        return found.scaled(found.seconds_per_step / (found.seconds_per_step + share))

    def _lengths(self, config: RunConfig) -> tuple[float, float]:
        """Tokens of an average row with its padding, and the share of them that is no padding."""
        lengths = self._request.lengths
        if lengths is None:
            return config.max_length, 1.0
        key = config.per_device_train_batch_size, config.max_length, config.packing, config.padding_free
        if key not in self._real_lengths:
            self._real_lengths[key] = _row_tokens(lengths, config)
        return self._real_lengths[key]


def _row_tokens(lengths: DataLengths, config: RunConfig) -> tuple[float, float]:
    """Joined rows have no padding: a packed one has the tokens of its documents."""
    if config.packing:
        return lengths.num_tokens(config.max_length) / lengths.num_packed(config.max_length), 1.0
    if config.padding_free:
        return lengths.mean(config.max_length), 1.0
    padded = lengths.expected_longest(config.per_device_train_batch_size, config.max_length)
    return padded, lengths.mean(config.max_length) / padded


@cache
def _pace_gpu() -> GpuProfile:
    return find_gpu(PACE_GPU)
