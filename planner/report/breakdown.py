"""An estimate taken apart: the phases of the step, what is alive at the peak, what each knob would change."""

from collections.abc import Sequence
from typing import get_args

from rich.console import Console
from rich.text import Text

from planner.explore.what_if import Effect
from planner.memory.estimate import MemoryEstimate
from planner.memory.reserved import Phase
from planner.predict.prediction import Prediction
from planner.records.run_record import method_of
from planner.report.answer import WORDS, evidence_facts, gpu_words, method_words, print_facts, setting_facts, size_words
from planner.report.bar import print_memory_bar
from planner.report.console import print_hanging
from planner.report.table import Column, print_table
from planner.search.ranking import SAME_SPEED
from planner.units import format_bytes

HOLDERS = (
    ("allocated", "live tensors at the peak"),
    ("reserved", "what torch's allocator takes for them"),
    ("process", "what nvidia-smi shows: with the CUDA context"),
)


def print_breakdown(console: Console, prediction: Prediction, *, explain: bool) -> None:
    """Print the verdict, the settings, the bar, and the phases; with `explain` the arithmetic of each component."""
    memory = prediction.estimate
    print_prediction(console, prediction)
    console.print()
    print_facts(
        console, setting_facts(prediction.config, _pace(prediction), None) + evidence_facts(prediction.evidence)
    )
    console.print()
    print_memory_bar(console, memory, prediction.usable_bytes)
    console.print("\nPeak of each phase, live tensors:")
    _print_phases(console, memory)
    if prediction.target.gpu is not None:
        _print_holders(console, memory)
    if explain:
        console.print(f"\nAlive at the peak, in the {memory.binding_phase} phase:")
        for part in sorted(memory.components, key=lambda part: -part.bytes):
            print_hanging(console, Text(f"  {format_bytes(part.bytes):>9}  "), f"{part.name}: {part.why}")


def print_prediction(console: Console, prediction: Prediction) -> None:
    """Print the verdict on a given configuration as a sentence."""
    word, style = WORDS[prediction.verdict]
    target = prediction.target
    cards = gpu_words(target.gpu, prediction.config.num_gpus, prediction.config.num_nodes)
    print_hanging(
        console,
        Text(f"{word}: ", style=style),
        f"{target.name} on {cards} with {method_words(prediction.config)} takes "
        f"{size_words(prediction.estimate)} of {format_bytes(prediction.usable_bytes)}.",
    )
    if prediction.caveat:
        print_hanging(console, Text("but: ", style="bold yellow"), prediction.caveat)
    where = target.gpu.name if target.gpu else "this CPU"
    if taught := target.experience.fault or prediction.lesson.words(method_of(prediction.config), where):
        print_hanging(console, Text("note: ", style="dim"), taught)


def print_effects(console: Console, effects: Sequence[Effect]) -> None:
    """Print what each knob would save or cost."""
    console.print("\nIf one knob alone were turned:")
    columns = (Column("change"), Column("memory", justify="right"), Column("speed", rank=1, justify="right"))
    rows = [[effect.change, _signed(effect.bytes), _percent(effect.speedup)] for effect in effects]
    print_table(console, columns, rows)


def _print_phases(console: Console, memory: MemoryEstimate) -> None:
    order = get_args(Phase)
    rows = [
        [phase, format_bytes(peak), "the largest" if phase == memory.binding_phase else ""]
        for phase, peak in sorted(memory.phases.items(), key=lambda item: order.index(item[0]))
    ]
    print_table(console, (Column("phase"), Column("peak", justify="right"), Column("", rank=1)), rows)


def _print_holders(console: Console, memory: MemoryEstimate) -> None:
    """Print what the tensors grow to in the allocator and in the process."""
    sizes = (memory.allocated_bytes, memory.reserved_bytes, memory.process_bytes)
    rows = [[name, format_bytes(size), what] for (name, what), size in zip(HOLDERS, sizes, strict=True)]
    console.print()
    print_table(console, (Column("memory"), Column("bytes", justify="right"), Column("", rank=1)), rows)


def _pace(prediction: Prediction) -> float | None:
    return prediction.speed.tokens_per_second if prediction.speed else None


def _signed(num_bytes: int) -> str:
    return f"{'-' if num_bytes < 0 else '+'}{format_bytes(abs(num_bytes))}"


def _percent(speedup: float | None) -> str:
    if speedup is None:
        return "-"
    return "same" if abs(speedup - 1) < SAME_SPEED else f"{speedup - 1:+.0%}"
