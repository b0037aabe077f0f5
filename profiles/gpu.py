"""One GPU: its memory as torch sees it, its speed, what it supports, what it costs. One row of `gpus/*.toml`."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from profiles.capabilities import Requirement, capabilities
from profiles.fitted import fitted
from profiles.overheads import MIB, overheads

GIB = 1024**3


class Flops(BaseModel):
    """Peak rate of dense matrix products by dtype, in FLOP/s (int8: operations/s). None where no source gives it.

    `fp16` and `bf16` are those with float32 accumulation, which is what torch asks for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fp32: float | None = Field(default=None, gt=0)
    tf32: float | None = Field(default=None, gt=0)
    fp16: float | None = Field(default=None, gt=0)
    bf16: float | None = Field(default=None, gt=0)
    int8: float | None = Field(default=None, gt=0)
    fp8: float | None = Field(default=None, gt=0)


class Offer(BaseModel):
    """The cheapest on-demand price of one cloud for one such GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cloud: str = Field(description="cloud and instance")
    usd_per_hour: float = Field(gt=0, description="of one GPU, on demand")
    date: str = Field(pattern=r"^(about )?\d{4}(-\d\d){0,2}$|^undated$", description="when the price was read")
    source: str = Field(description="key in gpus/sources.toml")


@dataclass(frozen=True, slots=True)
class PriceRange:
    """What one GPU costs, in USD an hour, over the clouds that offer it."""

    min_usd_per_hour: float
    median_usd_per_hour: float


class GpuProfile(BaseModel):
    """A GPU as the planner needs it: what is known, and nothing that is not.

    Its memory has up to three sizes: what torch reports, what the driver reports, and what the box says, which is the
    largest and always known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="the name it is listed under")
    aliases: tuple[str, ...] = Field(default=(), description="other names; case, spaces, '-' and '_' do not matter")
    nvml_name: str | None = Field(default=None, description="name that NVML and nvidia-smi report")
    vendor: Literal["NVIDIA", "AMD"] | None = Field(default=None, description="None for a bare memory size")
    architecture: str | None = Field(default=None, description="the vendor's name of the generation")
    compute_capability: tuple[int, int] | None = Field(default=None, description="CUDA major and minor")
    gfx_target: str | None = Field(default=None, pattern=r"^gfx[0-9a-f]+$", description="AMD compiler target")
    box_memory_gib: float = Field(gt=0, description="the size it is sold with, GiB")
    inline_ecc: bool = Field(default=False, description="whether ECC, where switched on, takes memory off the total")
    torch_memory_mib: int | None = Field(default=None, gt=0, description="total_memory that torch reports, MiB")
    driver_memory_mib: int | None = Field(default=None, gt=0, description="total that nvidia-smi reports, MiB")
    bandwidth_bytes_per_s: float | None = Field(default=None, gt=0, description="of the memory")
    flops: Flops = Flops()
    nvlink_bytes_per_s: float | None = Field(
        default=None, gt=0, description="to other GPUs over NVLink or xGMI, both ways together"
    )
    tdp_watts: float | None = Field(default=None, gt=0, description="power limit of the card")
    offers: tuple[Offer, ...] = Field(default=(), description="cloud prices")
    sources: tuple[str, ...] = Field(min_length=1, description="keys in gpus/sources.toml")
    uncertain: tuple[str, ...] = Field(default=(), description="fields that are derived or disputed")
    notes: str | None = Field(default=None, description="what else a reader should know")

    @model_validator(mode="after")
    def _check_generation(self) -> Self:
        wanted = {"NVIDIA": "compute_capability", "AMD": "gfx_target", None: None}[self.vendor]
        given = [field for field in ("compute_capability", "gfx_target") if getattr(self, field) is not None]
        if given != ([wanted] if wanted else []):
            raise ValueError(f"{self.name}: a card of {self.vendor} is described by {wanted}, not by {given}")
        return self

    @property
    def memory_bytes(self) -> int:
        """Bytes that torch sees. Where torch was not asked, the driver's total less the most the driver keeps."""
        if self.torch_memory_mib is not None:
            return self.torch_memory_mib * MIB
        return overheads().carve_out.torch_bytes(self.memory_total_bytes)

    @property
    def memory_total_bytes(self) -> int:
        """Bytes that the driver reports. Where it was not asked, what torch sees, or the size on the box less ECC."""
        known_mib = self.driver_memory_mib or self.torch_memory_mib
        if known_mib is not None:
            return known_mib * MIB
        board_bytes = int(self.box_memory_gib * GIB)
        return overheads().carve_out.driver_bytes(board_bytes) if self.inline_ecc else board_bytes

    @property
    def memory_measured(self) -> bool:
        """Whether `memory_bytes` was read from torch on such a card, and not bounded from another figure."""
        return self.torch_memory_mib is not None

    @property
    def context_bytes(self) -> int:
        """Bytes that a process holds outside the torch allocator: CUDA context, kernels, library handles."""
        measured = fitted().context_mib(self.name)
        if measured is not None:
            return measured * MIB
        return overheads().context.num_bytes(self.name, self.compute_capability, self.gfx_target)

    @property
    def cublas_workspace_bytes(self) -> int:
        """Bytes of one cuBLAS workspace; a training step has two, of the forward and of the autograd thread."""
        return overheads().cublas_workspace.num_bytes(self.compute_capability, self.gfx_target)

    @property
    def price(self) -> PriceRange | None:
        """USD an hour for one GPU, lowest and median over clouds; None where no offer is known."""
        if not self.offers:
            return None
        prices = sorted(offer.usd_per_hour for offer in self.offers)
        middle = len(prices) // 2
        return PriceRange(prices[0], (prices[middle] + prices[~middle]) / 2)

    @property
    def supports_bf16(self) -> bool:
        """Whether bfloat16 arithmetic is native."""
        return self._meets(capabilities().bf16)

    @property
    def supports_tf32(self) -> bool:
        """Whether float32 products can run on tensor cores."""
        return self._meets(capabilities().tf32)

    @property
    def supports_flash_attention(self) -> bool:
        """Whether the flash attention kernels run on it."""
        return self._meets(capabilities().flash_attention)

    @property
    def supports_memory_efficient_attention(self) -> bool:
        """Whether torch's memory-efficient attention kernels run on it."""
        return self._meets(capabilities().memory_efficient_attention)

    @property
    def supports_fp8(self) -> bool:
        """Whether fp8 matrix products are native."""
        return self._meets(capabilities().fp8)

    @property
    def supports_int8(self) -> bool:
        """Whether bitsandbytes' LLM.int8() runs on it."""
        return self._meets(capabilities().int8)

    @property
    def supports_bnb_4bit(self) -> bool:
        """Whether bitsandbytes' 4-bit weights and 8-bit optimizers run on it."""
        return self._meets(capabilities().bnb_4bit)

    def _meets(self, requirement: Requirement) -> bool:
        assumed = capabilities().assumed.compute_capability
        return requirement.met_by(self.compute_capability or assumed, self.gfx_target)
