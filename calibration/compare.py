"""Compares predictions with measured runs.

python -m calibration.compare --runs FILE.csv --with closed-form|trace [--json] [--picture FILE.svg]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from calibration.error_table import Comparison, Skipped, as_json, print_tables
from calibration.measured_runs import MeasuredRun, read_runs
from calibration.measured_step import question
from calibration.prediction import Prediction, Question, closed_form
from planner.report.progress import progress_bar
from profiles.errors import FituneError, InputError

Way = Literal["closed-form", "trace"]

WIDTH = 120
"""Columns of the tables where no terminal says its own."""


def compare(runs: Sequence[MeasuredRun], way: Way = "closed-form") -> tuple[list[Comparison], list[Skipped]]:
    """Every run beside its prediction, and those that cannot be predicted."""
    questions: dict[str, Question] = {}
    skipped: dict[str, str] = {}
    for run in runs:
        try:
            questions[run.id] = question(run)
        except InputError as error:
            skipped[run.id] = error.message
    answers = _by_closed_form(questions) if way == "closed-form" else _by_trace(questions)
    skipped |= {id_: answer for id_, answer in answers.items() if isinstance(answer, str)}
    compared = [Comparison(run, answer) for run in runs if isinstance(answer := answers.get(run.id), Prediction)]
    return compared, [Skipped(run.id, skipped[run.id]) for run in runs if run.id in skipped]


def _by_closed_form(questions: dict[str, Question]) -> dict[str, Prediction | str]:
    answers: dict[str, Prediction | str] = {}
    for id_, asked in questions.items():
        adapter = asked[1].adapter
        try:
            answers[id_] = closed_form(*asked)
        except InputError as error:
            other = adapter is not None and adapter.options is not None
            answers[id_] = "a PEFT method other than LoRA; the closed form covers LoRA" if other else error.message
    return answers


def _by_trace(questions: dict[str, Question]) -> dict[str, Prediction | str]:
    """Equal questions are traced once."""
    # torch takes seconds to import, and only this way needs it.
    from calibration.traced_prediction import traced_all

    keys = {id_: (model.hf_id, step, gpu.name) for id_, (model, step, gpu) in questions.items()}
    firsts = {key: id_ for id_, key in reversed(keys.items())}
    with progress_bar("tracing steps") as progress:
        answers = traced_all({id_: questions[id_] for id_ in firsts.values()}, progress)
    return {id_: answers[firsts[key]] for id_, key in keys.items()}


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
        compared, skipped = compare(read_runs(runs), with_)
        if picture is not None:
            # matplotlib is part of the extra `dev`.
            from calibration.error_picture import draw

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
