"""The outcomes of PEFT's methods as a table for people: `METHODS.md`, which the survey writes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import get_args

from profiles.peft_method import Base, LoraVariant, Outcome, PeftFacts

TABLE = Path(__file__).parents[1] / "METHODS.md"

BASES: tuple[Base, ...] = get_args(Base)

INTRODUCTION = """# PEFT's methods

Each method of PEFT {version} was trained through the trainer of `fitune launch` on a model of two layers, on a base in
each number format. `yes` means that the loss was finite and fell, that the adapter computed the same when it was saved
and loaded again, and, on a quantized base, that it does to the packed weights what it does to the same weights in
float32. A knob in a cell is one that it needs. A run goes on from a checkpoint if it ends with the logits of a run that
was not interrupted. `fitune methods` shows the same, and the options of each method.

Source: {source}
"""


def methods_table(facts: PeftFacts) -> str:
    """The page: what was tried, the table of methods and bases, that of LoRA's variants, and each failure's reason."""
    lines = [
        INTRODUCTION.format(version=facts.peft_version, source=facts.source),
        *_header("method", "learns in", "goes on from a checkpoint"),
        *(
            _row(name, method.bases, method.trains, "yes" if method.resumes else "no")
            for name, method in facts.methods.items()
        ),
        "",
        "Variants of LoRA, as options of the section `lora`:",
        "",
        *_header("option"),
        *(_row(variant_name(variant), variant.bases) for variant in facts.lora_variants),
        "",
        "Why the others fail, in the words of PEFT or torch where they raised an error:",
        "",
        *_reasons({name: method.bases for name, method in facts.methods.items()}),
        *_reasons({variant_name(variant): variant.bases for variant in facts.lora_variants}),
    ]
    return "\n".join(lines) + "\n"


def variant_name(variant: LoraVariant) -> str:
    """A variant by its options, as a run file has them."""
    values = {True: "true", False: "false"}
    return ", ".join(f"{name}: {values.get(value, value)}" for name, value in variant.options.items())


def _header(first: str, *others: str) -> Iterator[str]:
    cells = (first, *others[:1], *BASES, *others[1:])
    yield f"| {' | '.join(cells)} |"
    yield f"|{'---|' * len(cells)}"


def _row(name: str, bases: Mapping[Base, Outcome], *others: str) -> str:
    return f"| {' | '.join((name, *others[:1], *(_cell(bases[base]) for base in BASES), *others[1:]))} |"


def _cell(outcome: Outcome) -> str:
    if not outcome.works:
        return "-"
    needs = [f"{knob}: {str(value).lower()}" for knob, value in outcome.needs.items()]
    return f"yes, {', '.join(needs)}" if needs else "yes"


def _reasons(outcomes: Mapping[str, Mapping[Base, Outcome]]) -> Iterator[str]:
    for name, bases in outcomes.items():
        reasons: dict[str, list[str]] = {}
        for base in BASES:
            if bases[base].reason:
                reasons.setdefault(str(bases[base].reason), []).append(base)
        yield from (f"- {name} on {', '.join(where)}: {reason}" for reason, where in reasons.items())
