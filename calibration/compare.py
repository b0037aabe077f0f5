"""Compares predictions with measured runs.

python -m calibration.compare --runs FILE.csv --with closed-form|trace [--json] [--picture FILE.svg]
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from calibration.trace.harness import harness_of
from calibration.truth.error_table import Comparison, Skipped, as_json, print_tables
from calibration.truth.kept_traces import KeptTraces, fingerprint, tracer
from calibration.truth.measured_runs import MeasuredRun, read_runs
from calibration.truth.measured_step import question
from calibration.truth.prediction import Prediction, Question, Refusal, closed_form
from planner.report.progress import progress_bar
from profiles.errors import FituneError, InputError

Way = Literal["closed-form", "trace"]
Questions = dict[str, Question]
"""What is asked about each run, by its id."""

Answers = dict[str, Prediction | Refusal]
Predict = Callable[[Questions], Answers]

WIDTH = 120
"""Columns of the tables where no terminal says its own."""


def compare(runs: Sequence[MeasuredRun], predict: Predict | None = None) -> tuple[list[Comparison], list[Skipped]]:
    """Every run beside its prediction, by the closed form if nothing else is named, and those without one."""
    questions: dict[str, Question] = {}
    skipped: dict[str, str] = {}
    for run in runs:
        try:
            questions[run.id] = question(run)
        except InputError as error:
            skipped[run.id] = error.message
    answers = (predict or by_closed_form)(questions)
    skipped |= {id_: answer for id_, answer in answers.items() if isinstance(answer, str)}
    compared = [Comparison(run, answer) for run in runs if isinstance(answer := answers.get(run.id), Prediction)]
    return compared, [Skipped(run.id, skipped[run.id]) for run in runs if run.id in skipped]


def by_closed_form(questions: Questions) -> Answers:
    """The estimates of the planner."""
    answers: Answers = {}
    for id_, asked in questions.items():
        adapter = asked[1].adapter
        try:
            answers[id_] = closed_form(*asked)
        except InputError as error:
            other = adapter is not None and adapter.options is not None
            answers[id_] = "a PEFT method other than LoRA; the closed form covers LoRA" if other else error.message
    return answers


def by_trace(questions: Questions, kept: KeptTraces | None = None) -> Answers:
    """What traces of the steps predict. Equal questions are traced once, and those not at all whose answer is kept;
    each answer is kept as it comes, so that what is interrupted goes on where it was.
    """
    if kept is not None:
        kept.forget_all_but(questions.keys())
    found = {} if kept is None else {id_: kept.find(id_, asked, tracer()) for id_, asked in questions.items()}
    answers: Answers = {id_: answer for id_, answer in found.items() if answer is not None}
    alike: dict[str, list[str]] = {}
    for id_ in (id_ for id_ in questions if id_ not in answers):
        alike.setdefault(fingerprint(questions[id_], harness_of(id_)), []).append(id_)
    if not alike:
        return answers
    # torch takes seconds to import, and nothing else here needs it.
    from calibration.truth.traced_prediction import traced_each

    with progress_bar(f"tracing {len(alike)} steps") as progress:
        firsts = {key: (questions[ids[0]], harness_of(ids[0])) for key, ids in alike.items()}
        for done, (key, answer) in enumerate(traced_each(firsts), 1):
            for id_ in alike[key]:
                answers[id_] = answer
                if kept is not None:
                    kept.keep(id_, questions[id_], answer)
            progress(done / len(alike))
    return answers


def as_kept(questions: Questions, kept: KeptTraces) -> Answers:
    """What traces predicted when they were last made, without making any."""
    answers = {id_: kept.find(id_, asked) for id_, asked in questions.items()}
    return {id_: "not traced yet" if answer is None else answer for id_, answer in answers.items()}


def main(
    runs: Annotated[
        Path, typer.Option(help="CSV file of measured runs, in the columns of calibration/truth/README.md.")
    ],
    with_: Annotated[
        Way,
        typer.Option(
            "--with",
            help="What predicts: the formulas of the planner, in a second, or the trainer's own step traced on fake "
            "tensors and replayed on a model of torch's allocator, in minutes.",
        ),
    ] = "closed-form",
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw predicted against measured memory into this .svg or .png file.")
    ] = None,
) -> None:
    """Compare predictions with measured runs, row by row and in groups."""
    try:
        compared, skipped = compare(read_runs(runs), by_trace if with_ == "trace" else by_closed_form)
        if picture is not None:
            # matplotlib is part of the extra `dev`.
            from calibration.truth.error_picture import draw

            draw(compared, picture)
    except FituneError as error:
        Console(stderr=True, highlight=False).print(f"error: {error.message}", markup=False)
        raise typer.Exit(error.exit_code) from error
    if as_data:
        typer.echo(json.dumps(as_json(compared, skipped), indent=1))
    else:
        print_tables(compared, skipped, Console(width=None if sys.stdout.isatty() else WIDTH))


application = typer.Typer(add_completion=False)
application.command()(main)


if __name__ == "__main__":
    application()
