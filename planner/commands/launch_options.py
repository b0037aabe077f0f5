"""The options of `fitune launch` that its trainer gets."""

from typing import Annotated

import typer

from planner.jobs.targets import Cluster

MaxRestarts = Annotated[
    int | None,
    typer.Option(
        "--max-restarts",
        metavar="N",
        min=0,
        help="Fresh starts after memory ended or a process was lost; as many as help, if not given.",
        show_default=False,
    ),
]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank", metavar="N", min=0, help="Of several machines: this one's number, from 0.", show_default=False
    ),
]
MasterAddr = Annotated[
    str | None,
    typer.Option("--master-addr", metavar="HOST", help="Of several machines: where machine 0 is.", show_default=False),
]
MasterPort = Annotated[
    int | None,
    typer.Option(
        "--master-port",
        metavar="PORT",
        min=1,
        max=65535,
        help="Of several machines: the port there, 29500 if not given.",
        show_default=False,
    ),
]
Print = Annotated[
    Cluster | None,
    typer.Option(
        "--print",
        help="Print a job file for machines of others, and start nothing.",
        show_default=False,
    ),
]
