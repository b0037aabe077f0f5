"""How many bytes a quantized weight takes, to the byte as bitsandbytes packs it (`quantization.toml`)."""

import tomllib
from functools import cache
from math import ceil
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Scheme = Literal["nf4", "fp4", "int8"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DoubleQuantization(_Facts):
    """The scales themselves in blocks of 8-bit values."""

    block_size: int = Field(gt=0, description="scales that share one outer scale")
    scale_bytes: int = Field(gt=0, description="of a scale that is quantized itself")
    outer_scale_bytes: int = Field(gt=0)
    table_bytes: int = Field(ge=0, description="the values that 8 bits stand for")
    offset_bytes: int = Field(ge=0, description="the mean that was taken off the scales")
    source: str


class QuantizationProfile(_Facts):
    """One scheme: packed bits, scales, and what a layer needs while it computes.

    `block_size` is None where each row of the weight has one scale.
    """

    bits: Literal[4, 8]
    block_size: int | None = Field(default=None, gt=0, description="weights that share one scale")
    scale_bytes: int = Field(gt=0)
    table_bytes: int = Field(default=0, ge=0, description="the values that the packed bits stand for")
    double_quant: DoubleQuantization | None = None
    saves_input: bool = Field(default=False, description="whether a frozen layer keeps its input for backward")
    forward_bytes_per_input: int = Field(default=0, ge=0, description="scratch for each element of the input")
    forward_bytes_per_output: int = Field(default=0, ge=0, description="scratch for each element of the output")
    source: str


def quantized_bytes(num_weights: int, rows: int, scheme: Scheme, double_quant: bool) -> int:
    """Bytes of one packed weight matrix of `rows` output features: values, scales and tables.

    `double_quant` has no effect on int8, which has no blocks.
    """
    profile = find_quantization(scheme)
    packed = ceil(num_weights * profile.bits / 8)
    scales = rows if profile.block_size is None else ceil(num_weights / profile.block_size)
    nested = profile.double_quant if double_quant else None
    if nested is None:
        return packed + scales * profile.scale_bytes + profile.table_bytes
    outer = ceil(scales / nested.block_size) * nested.outer_scale_bytes + nested.table_bytes + nested.offset_bytes
    return packed + scales * nested.scale_bytes + profile.table_bytes + outer


@cache
def find_quantization(scheme: Scheme) -> QuantizationProfile:
    """The facts of one scheme."""
    tables = tomllib.loads(Path(__file__).with_name("quantization.toml").read_text("utf-8"))
    return QuantizationProfile.model_validate(tables[scheme])
