"""What `fitune launch` takes."""

from pathlib import Path
from typing import Annotated

import typer

from planner.jobs.targets import Cluster

RunFile = Annotated[
    Path, typer.Argument(metavar="RUN_FILE", help="Written by `fitune plan`, or by hand.", show_default=False)
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in output_dir.")]
AutoResume = Annotated[
    bool,
    typer.Option("--auto-resume", help="Continue if there is a checkpoint, else start: for jobs that are requeued."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and print the command; change nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Start even if the prediction does not fit.")]
MaxRestarts = Annotated[
    int | None,
    typer.Option(
        "--max-restarts",
        metavar="N",
        min=0,
        help="Restarts after memory ran out or a process was killed; 10 if not given.",
        show_default=False,
    ),
]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank",
        metavar="N",
        min=0,
        help="On several machines: the number of this one, from 0.",
        show_default=False,
    ),
]
MasterAddr = Annotated[
    str | None,
    typer.Option(
        "--master-addr", metavar="HOST", help="On several machines: the address of machine 0.", show_default=False
    ),
]
MasterPort = Annotated[
    int | None,
    typer.Option(
        "--master-port",
        metavar="PORT",
        min=1,
        max=65535,
        help="On several machines: the port on machine 0; 29500 if not given.",
        show_default=False,
    ),
]
Print = Annotated[
    Cluster | None,
    typer.Option(
        "--print",
        help="Print a job file for a cluster, and start nothing.",
        show_default=False,
    ),
]
