"""`fitune gpus`: the cards in the catalog, and what is known of each."""

from typing import Annotated

import typer

from planner.commands.options import Json
from planner.report.document import print_json
from planner.report.table import Cell, Column, print_table
from planner.units import GIB
from planner.verbs import facts
from profiles.gpu import GpuProfile

COLUMNS = (
    Column("GPU"),
    Column("GiB", justify="right"),
    Column("GB/s", rank=2, justify="right"),
    Column("TFLOP/s", rank=3, justify="right"),
    Column("16-bit", rank=4),
    Column("attention", rank=6),
    Column("USD/h", rank=1, justify="right"),
    Column("generation", rank=5),
    Column("cc", rank=7, justify="right"),
)


def gpus(
    words: Annotated[
        str | None,
        typer.Argument(metavar="FILTER", help="Part of a name or of a generation.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """List the cards: memory as torch sees it, speed, price.

    \b
    Examples:
      fitune gpus
      fitune gpus ampere
      fitune gpus t4 --json      every fact, with its source
    """
    if json:
        print_json(facts.gpus(words))
    else:
        from planner.report.console import data_console

        print_table(data_console(), COLUMNS, [_row(gpu) for gpu in facts.find_gpus(words)])
    return 0


def _row(gpu: GpuProfile) -> list[Cell]:
    flops = gpu.flops.bf16 or gpu.flops.fp16
    return [
        gpu.name,
        f"{gpu.memory_bytes / GIB:.1f}",
        f"{gpu.bandwidth_bytes_per_s / 1e9:.0f}" if gpu.bandwidth_bytes_per_s else "-",
        f"{flops / 1e12:.0f}" if flops else "-",
        "bf16" if gpu.supports_bf16 else "fp16",
        _attention(gpu),
        f"{gpu.price.median_usd_per_hour:.2f}" if gpu.price else "-",
        gpu.architecture or "-",
        ".".join(map(str, gpu.compute_capability)) if gpu.compute_capability else gpu.gfx_target or "-",
    ]


def _attention(gpu: GpuProfile) -> str:
    if gpu.supports_flash_attention:
        return "flash"
    return "memory-efficient" if gpu.supports_memory_efficient_attention else "math"
