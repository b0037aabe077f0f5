"""Full fine-tuning on up to a thousand cards, on paper: which layout wins where, and what it costs.

python -m planner.scale_study [-o FILE.md]
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from planner.config.run_config import ParallelKnobs, RunConfig
from planner.memory.estimate import MemoryEstimate, estimate
from planner.memory.verdict import usable_bytes, verdict
from planner.report.answer import LAYOUTS, OFFLOADS
from planner.report.markdown import markdown_table
from planner.speed.step_time import SpeedEstimate, step_time
from planner.step.cluster import Cluster
from planner.step.resolve import resolve_step
from planner.units import format_bytes, format_count
from profiles.build_architecture import architecture
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.instance import find_instance
from profiles.model import ModelProfile
from profiles.model_catalog import find_model
from profiles.parameter_counts import parameter_counts

PAGE = Path(__file__).with_name("SCALE.md")
MACHINE = "p5.48xlarge"
NODES = (1, 4, 16, 64, 128)
LENGTH = 4096
MICRO_BATCHES = (8, 4, 2, 1)

STRATEGIES = (
    ParallelKnobs(strategy="ddp"),
    ParallelKnobs(strategy="fsdp"),
    ParallelKnobs(strategy="zero1"),
    ParallelKnobs(strategy="zero2"),
    ParallelKnobs(strategy="zero3"),
    ParallelKnobs(strategy="fsdp", offload="parameters"),
    ParallelKnobs(strategy="fsdp", tensor_parallel_size=8),
    ParallelKnobs(strategy="fsdp", context_parallel_size=8),
)

INTRODUCTION = f"""# At scale, on paper

Full fine-tuning with AdamW, float32 master weights and bfloat16 products, rows of {LENGTH} tokens, every layer
checkpointed, on machines like AWS's {MACHINE}: eight H100 with 80 GB and 3,200 Gbit/s of network. Each cell has the
memory of one card and the tokens per second of all, with the largest micro-batch of 8, 4, 2 or 1 rows that fits; where
none does, the memory that one row would need. The fastest layout of each number of cards is bold, the first of equals.

Nothing here was measured. Memory is the closed form, which is held to runs on 2 and 4 cards and to traces; speed is a
roofline with the rates and links of `profiles/`, without the latency of collectives, which grows with the cards. FSDP
loads a model through the main memory of each machine, in float32 here. Pipeline and expert parallelism are not among
the layouts. This page is written by `python -m planner.scale_study`.
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One layout on so many cards: the largest micro-batch that fits, or the smallest where none does."""

    knobs: ParallelKnobs
    cluster: Cluster
    micro_batch: int
    memory: MemoryEstimate
    speed: SpeedEstimate | None

    @property
    def tokens_per_second(self) -> float:
        """Of all cards; 0 where it does not fit."""
        return self.speed.tokens_per_second if self.speed else 0.0


@cache
def models() -> tuple[ModelProfile, ...]:
    """Three dense models, and a mixture of experts of a trillion parameters."""
    names = ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-405B")
    return (*map(find_model, names), _trillion())


def _trillion() -> ModelProfile:
    """The shape of Kimi K2 (arXiv:2507.20534, table 2; its attention is DeepSeek-V3's, arXiv:2412.19437), in the parts
    of DeepSeek-V2, which are the same but for the router's bias.
    """
    shape = {
        "hf_id": "moonshotai/Kimi-K2-Base",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 64,
        "num_key_value_heads": 64,
        "vocab_size": 163840,
        "num_experts": 384,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 1536,
    }
    return find_model("deepseek-ai/DeepSeek-V2-Lite").model_copy(update=shape)


def cell(model: ModelProfile, knobs: ParallelKnobs, num_nodes: int) -> Cell | None:
    """What `knobs` come to on so many machines; None for a model that they cannot split."""
    machine = find_instance(MACHINE)
    assert machine is not None
    cluster = Cluster(machine.num_gpus, num_nodes, machine, machine.memory_bytes)
    gpu, found = find_gpu(machine.gpu), None
    for micro_batch in MICRO_BATCHES:
        step = resolve_step(_config(model, knobs, cluster, micro_batch), model, gpu)
        try:
            memory = estimate(model, step, gpu)
        except UnsupportedError:
            return None
        in_host = memory.host_bytes <= (machine.memory_bytes or 0)
        fits = in_host and verdict(memory, usable_bytes(gpu)) == "fits"
        speed = step_time(model, step, gpu, network_bytes_per_s=cluster.network_bytes_per_s) if fits else None
        found = Cell(knobs, cluster, micro_batch, memory, speed)
        if fits:
            return found
    return found


def _config(model: ModelProfile, knobs: ParallelKnobs, cluster: Cluster, micro_batch: int) -> RunConfig:
    return RunConfig(
        model=model.hf_id,
        gpu=cluster.instance.gpu if cluster.instance else None,
        num_gpus=cluster.num_gpus,
        num_nodes=cluster.num_nodes,
        parallel=knobs,
        method="full",
        dtype="float32",
        max_length=LENGTH,
        per_device_train_batch_size=micro_batch,
    )


def page() -> str:
    """All of it as Markdown."""
    return "\n\n".join((INTRODUCTION.strip(), *map(_section, models()))) + "\n"


def _section(model: ModelProfile) -> str:
    grid = {knobs: [cell(model, knobs, nodes) for nodes in NODES] for knobs in STRATEGIES}
    best = [_fastest(column) for column in zip(*grid.values(), strict=True)]
    headings = ["layout", *(f"{nodes * 8:,} cards" for nodes in NODES)]
    rows = [[_layout(knobs), *map(_text, row, best)] for knobs, row in grid.items()]
    size = format_count(parameter_counts(architecture(model)).total)
    return "\n\n".join(
        (
            f"## {model.hf_id}, {size} parameters",
            markdown_table(headings, rows),
            markdown_table(WINNER_HEADINGS, _winners(best)),
        )
    )


def _fastest(column: tuple[Cell | None, ...]) -> Cell | None:
    fitting = [one for one in column if one is not None and one.speed is not None]
    return max(fitting, key=lambda one: one.tokens_per_second, default=None)


def _text(one: Cell | None, best: Cell | None) -> str:
    if one is None:
        return "cannot be split so"
    if one.speed is None:
        host = one.cluster.host_memory_bytes or 0
        if one.memory.host_bytes > host:
            return f"needs {format_bytes(one.memory.host_bytes)} of host memory"
        return f"needs {format_bytes(one.memory.process_bytes)}"
    words = f"{format_bytes(one.memory.process_bytes)}, {one.tokens_per_second:,.0f} tokens/s"
    return f"**{words}**" if one is best else words


WINNER_HEADINGS = ["cards", "fastest", "rows a card", "memory", "tokens/s", "USD for a billion tokens"]


def _winners(best: list[Cell | None]) -> Iterator[list[str]]:
    for nodes, one in zip(NODES, best, strict=True):
        if one is None:
            yield [f"{nodes * 8:,}", "none fits", "", "", "", ""]
            continue
        usd = one.cluster.usd_per_hour(None) or 0.0
        yield [
            f"{nodes * 8:,}",
            _layout(one.knobs),
            str(one.micro_batch),
            format_bytes(one.memory.process_bytes),
            f"{one.tokens_per_second:,.0f}",
            f"{usd / 3600 / one.tokens_per_second * 1e9:,.0f}",
        ]


def _layout(knobs: ParallelKnobs) -> str:
    name = LAYOUTS[knobs.strategy].rpartition("(")[2].rstrip(")")
    words = [name]
    words += [f"tensor x {knobs.tensor_parallel_size}"] if knobs.tensor_parallel_size > 1 else []
    words += [f"context x {knobs.context_parallel_size}"] if knobs.context_parallel_size > 1 else []
    words += [OFFLOADS[knobs.offload]] if knobs.offload != "none" else []
    return ", ".join(words)


def main(output: Annotated[Path, typer.Option("-o", "--output", help="Where the page is written.")] = PAGE) -> None:
    """Write the page."""
    output.write_text(page(), "utf-8")


if __name__ == "__main__":
    typer.run(main)
