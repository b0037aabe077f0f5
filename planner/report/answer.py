"""The answer to "can I?": a verdict in a sentence, the settings, and the memory drawn against the card."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from planner.config.run_config import PAIRED, REFERRING, Method, Objective, Offload, RunConfig, Strategy
from planner.memory.estimate import MemoryEstimate
from planner.memory.verdict import Verdict
from planner.report.bar import print_memory_bar
from planner.report.console import print_hanging
from planner.report.table import Column, print_table
from planner.search.planning import Cost, Plan
from planner.units import format_bytes, format_count, format_seconds
from profiles.build_architecture import architecture
from profiles.gpu import GpuProfile
from profiles.parameter_counts import parameter_counts
from profiles.residuals import Evidence

WORDS: dict[Verdict, tuple[str, str]] = {
    "fits": ("Yes", "bold green"),
    "tight": ("Tight", "bold yellow"),
    "no": ("No", "bold red"),
}
METHODS: dict[Method, str] = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "peft": "PEFT"}
OBJECTIVES: dict[Objective, str] = {
    "sft": "answers",
    "dpo": "preferences, by DPO",
    "ipo": "preferences, by IPO",
    "orpo": "preferences, by ORPO",
    "kto": "judged answers, by KTO",
    "reward": "a score of answers, from preferences",
}
LAYOUTS: dict[Strategy, str] = {
    "ddp": "each holds all (DDP)",
    "fsdp": "weights, gradients and states shared out (FSDP)",
    "zero1": "optimizer states shared out (ZeRO-1)",
    "zero2": "gradients and optimizer states shared out (ZeRO-2)",
    "zero3": "weights, gradients and states shared out (ZeRO-3)",
}
OFFLOADS: dict[Offload, str] = {
    "none": "",
    "optimizer": "optimizer states in host memory",
    "parameters": "weights and optimizer in host memory",
}
LABEL_WIDTH = 13

NEAREST_COLUMNS = (
    Column("change"),
    Column("method", rank=2),
    Column("tokens", rank=3, justify="right"),
    Column("needs", justify="right"),
    Column("tokens/s", rank=1, justify="right"),
)


def print_answer(console: Console, plan: Plan) -> None:
    """Print the verdict, then what was chosen and where the memory goes, or what is missing and what would help."""
    print_verdict(console, plan)
    console.print()
    if plan.config is not None:
        facts = setting_facts(plan.config, plan.tokens_per_second, plan.cost)
        if plan.estimate.host_bytes:
            facts.append(("host memory", f"about {format_bytes(plan.estimate.host_bytes)} in each machine"))
        print_facts(console, facts + evidence_facts(plan.evidence))
        console.print()
    print_memory_bar(console, plan.estimate, plan.usable_bytes)
    print_nearest(console, plan)
    if plan.notes:
        console.print()
    for note in plan.notes:
        print_hanging(console, Text("note: ", style="dim"), note)


def print_verdict(console: Console, plan: Plan) -> None:
    """Print the verdict as a sentence, and the memory behind it as another."""
    word, style = WORDS[plan.verdict]
    lead = Text(f"{word}: ", style=style)
    print_hanging(console, lead, f"{verdict_sentence(plan)} {memory_sentence(plan)}")


def print_next(console: Console, command: str | None) -> None:
    """Print the command to type next, on one line of its own, if there is one."""
    if command:
        console.print(Text.assemble(("\nNext: ", "bold cyan"), command), soft_wrap=True)


def print_nearest(console: Console, plan: Plan) -> None:
    """Print the smallest changes that would make it fit, if there are any."""
    if not plan.nearest:
        return
    console.print("\nThe nearest changes that fit:")
    rows = [
        [
            change.what,
            method_words(change.candidate.config),
            str(change.candidate.config.max_length),
            format_bytes(change.candidate.estimate.process_bytes),
            f"{change.candidate.tokens_per_second:,.0f}" if change.candidate.tokens_per_second else "-",
        ]
        for change in plan.nearest
    ]
    print_table(console, NEAREST_COLUMNS, rows)


def print_facts(console: Console, facts: Sequence[tuple[str, str]]) -> None:
    """Print labels and what they stand for, one a line."""
    for label, text in facts:
        print_hanging(console, Text(f"  {label:<{LABEL_WIDTH}}", style="dim"), text)


def setting_facts(config: RunConfig, tokens_per_second: float | None, cost: Cost | None) -> list[tuple[str, str]]:
    """The settings of a run that decide memory and speed, in words, and its speed."""
    facts = [("objective", OBJECTIVES[config.objective])] if config.objective != "sft" else []
    if config.objective in REFERRING:
        facts.append(("reference", _reference(config)))
    facts += [
        *([("cards", layout_words(config))] if config.parallel else []),
        ("method", _method(config)),
        ("batch", _batch(config)),
        ("activations", _activations(config)),
        ("optimizer", config.optim),
    ]
    if tokens_per_second is not None:
        facts.append(("speed", f"about {tokens_per_second:,.0f} tokens/s"))
    if cost is not None:
        facts.append(("your data", _cost(cost)))
    return facts


def evidence_facts(evidence: Evidence | None) -> list[tuple[str, str]]:
    """What the figures rest on beside the formulas, if they are of a card."""
    return [("evidence", evidence.words)] if evidence else []


def method_words(config: RunConfig) -> str:
    """The method with its base and rank in one word or two, such as `qlora nf4 r16`."""
    adapter = f"r{config.lora.r}" if config.lora else config.peft and config.peft.type
    words = [config.method, config.quantization, adapter]
    return " ".join(word for word in words if word)


def checkpoint_words(config: RunConfig) -> str:
    """What is kept of the layers until the backward pass."""
    if not config.gradient_checkpointing:
        return "no checkpoints"
    every = f" of every {config.checkpoint_every_n_layers}" if config.checkpoint_every_n_layers > 1 else ""
    return f"checkpoints{every}{' in host memory' if config.checkpoint_offload else ''}"


def size_words(estimate: MemoryEstimate) -> str:
    """The memory of the process, and the range in which it is expected."""
    low, high = (format_bytes(edge) for edge in estimate.interval_bytes)
    return format_bytes(estimate.process_bytes) + (f" ({low} to {high})" if low != high else "")


def gpu_words(gpu: GpuProfile | None, num_gpus: int = 1, num_nodes: int = 1) -> str:
    """The cards and machines, or the CPU."""
    if gpu is None:
        return "this CPU"
    cards = f"{num_gpus} {gpu.name}" if num_gpus > 1 else f"one {gpu.name}"
    return f"{num_nodes} machines with {cards} each" if num_nodes > 1 else cards


def layout_words(config: RunConfig) -> str:
    """How the cards share the run."""
    knobs = config.parallel
    if knobs is None:
        return "alone"
    words = [f"{config.world_size} cards, {LAYOUTS[knobs.strategy]}"]
    words += [f"{knobs.tensor_parallel_size} split each product"] if knobs.tensor_parallel_size > 1 else []
    words += [f"{knobs.context_parallel_size} split each row"] if knobs.context_parallel_size > 1 else []
    words += [OFFLOADS[knobs.offload]] if knobs.offload != "none" else []
    return ", ".join(words)


def model_words(plan: Plan) -> str:
    """The model as the user called it, with its id if that differs, and its size."""
    model, called = plan.request.model, plan.request.model_name
    size = f"{format_count(parameter_counts(architecture(model)).total)} parameters"
    return f"{model.hf_id} ({size})" if called in (None, model.hf_id) else f"{called} ({model.hf_id}, {size})"


def _cost(cost: Cost) -> str:
    words = f"{cost.num_steps:,} steps"
    words += f" in about {format_seconds(cost.seconds)}" if cost.seconds is not None else ""
    words += f", {cost.usd:,.2f} USD" if cost.usd is not None else ""
    return words + (f"; {cost.padding_share:.0%} of the tokens are padding" if cost.padding_share is not None else "")


def verdict_sentence(plan: Plan) -> str:
    """What fits where, or does not."""
    cluster = plan.request.cluster
    model, card = model_words(plan), gpu_words(plan.request.gpu, cluster.num_gpus, cluster.num_nodes)
    if plan.config is not None:
        end = "." if plan.verdict == "fits" else ", but only just."
        return f"{model} fits {card} with {METHODS[plan.config.method]}{end}"
    asked = plan.request.method
    how = ", even with QLoRA" if asked == "auto" else f" with {METHODS[asked]}"
    return f"{model} does not fit {card}{how}."


def memory_sentence(plan: Plan) -> str:
    """The memory behind the verdict."""
    if plan.shortfall is not None:
        return f"{plan.shortfall[0].upper()}{plan.shortfall[1:]}."
    return f"It takes about {size_words(plan.estimate)} of {format_bytes(plan.usable_bytes)}."


def _method(config: RunConfig) -> str:
    base = f"{config.quantization} base, rest {config.dtype}" if config.quantization else f"{config.dtype} weights"
    autocast = f", {config.mixed_precision} autocast" if config.mixed_precision != "no" else ""
    if config.peft is not None:
        return f"peft {config.peft.type}: {base}{autocast}"
    if config.lora is None:
        return f"full: {base}{autocast}"
    targets = config.lora.target_modules
    where = targets if isinstance(targets, str) else ", ".join(targets)
    return f"{config.method}: {base}{autocast}, rank {config.lora.r} on {where}"


def _batch(config: RunConfig) -> str:
    rows, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    examples = "pairs of rows" if config.objective in PAIRED else "rows"
    groups = config.data_parallel_size
    cards = f" x {groups} cards" if groups > 1 else ""
    total = rows * steps * groups
    return f"{rows} x {steps} accumulated{cards} = {total} {examples} of up to {config.max_length} tokens"


def _reference(config: RunConfig) -> str:
    if config.asks_reference_before:
        return "asked once before training, which takes a pass over the data"
    return f"{'a frozen copy' if config.method == 'full' else 'the base without its adapter'}, asked in each step"


def _activations(config: RunConfig) -> str:
    return f"{checkpoint_words(config)}, {config.attn_implementation} attention, {config.loss} loss"
