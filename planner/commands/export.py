"""`fitune export`: a run file in the words of another trainer, or as a Python program."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.commands.options import Json, Settings
from planner.config.settings import check_knobs, knobs_in, with_knobs
from planner.report.document import print_json


def _complete_target(incomplete: str) -> list[str]:
    from planner.peers.export import targets

    return [name for name in targets() if name.startswith(incomplete)]


def export(
    run_file: Annotated[Path, typer.Argument(metavar="RUN_FILE", help="What `fitune plan -o` wrote.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME",
            help="axolotl, llama-factory, trl, unsloth, or script: a Python program on Transformers, PEFT and TRL.",
            autocompletion=_complete_target,
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER|FILE", help="Where to write it, with what belongs to it.")
    ] = Path(),
    settings: Settings = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
    json: Json = False,
) -> int:
    """Write a run file in the words of another trainer.

    The file is complete, says for which release it was written and how it is started, and comes with what it needs
    beside it. What the other trainer cannot say is refused, or told where it does not change what is trained.

    \b
    Examples:
      fitune export run.yaml --to axolotl -o configs
      fitune export run.yaml --to script -o train.py
    """
    from planner.config.run_file import read_run_file
    from planner.peers.export import export_run, write_export

    knobs = knobs_in(settings or ())
    check_knobs(knobs)
    made = export_run(with_knobs(read_run_file(run_file), knobs), to, output)
    write_export(made, force=force)
    if json:
        files = [str(path) for path in made.files]
        print_json({"to": to, "files": files, "command": made.command, "remarks": list(made.remarks)})
        return 0
    for path in made.files:
        sys.stdout.write(f"{path}\n")
    for remark in made.remarks:
        sys.stderr.write(f"note: left out: {remark}\n")
    sys.stderr.write(f"\nNext: {made.command}\n")
    return 0
