"""`fitune calibrate`: measure training steps on this machine's card, beside what is predicted of them."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.commands.options import Json
from profiles.errors import InputError

Minutes = Annotated[
    float, typer.Option("--minutes", metavar="MINUTES", help="No point is begun that would end later than this.")
]
Cap = Annotated[
    list[str] | None,
    typer.Option(
        "--cap",
        metavar="SIZE",
        help="Memory that the process may take, such as 15GB: measures at the edge of it. Repeatable.",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where records are appended; points that are in it are not measured again.",
        show_default="CARD.jsonl, in calibration/records of a checkout",
    ),
]
Trace = Annotated[
    bool, typer.Option("--trace", help="Predict each point by a trace as well, in seconds that the card waits.")
]
List = Annotated[bool, typer.Option("--list", help="Print what would be measured and what is predicted; no torch.")]
ListedGpu = Annotated[
    str | None,
    typer.Option("--gpu", metavar="GPU", help="With --list: the card to list for.", show_default="this machine's"),
]


def calibrate(
    minutes: Minutes = 8.0,
    cap: Cap = None,
    output: Output = None,
    trace: Trace = False,
    list_only: List = False,
    gpu: ListedGpu = None,
    json: Json = False,
) -> int:
    """Train short runs of real architectures with random weights here, and record what they take.

    Memory by phase and speed stand beside what was predicted, a line of JSON for each point, the most informative
    points first. Memory that ends is a result. Ctrl-C leaves a whole file, and the next start goes on from there.
    Nothing is downloaded. What was measured teaches later plans on this machine. Without a card a few tiny steps are
    counted on the CPU, to see that it works.

    With --cap a large card answers for a small one: rows get as long as they may be to be called `fits`, or must be to
    be called `no`, and whether they run shows what those verdicts are worth.

    The exit code is 1 if nothing could be measured.

    \b
    Examples:
      fitune calibrate --list --gpu h200
      fitune calibrate --minutes 8 -o h200.jsonl
      fitune calibrate --cap 15GB --cap 24GB -o h200.jsonl
    """
    if minutes <= 0:
        raise InputError(f"--minutes is {minutes:g}, but it must be above 0", hint="leave it out for 8")
    argv = [sys.executable, "-m", "calibration.measure", "--minutes", str(minutes)]
    argv += [part for size in cap or () for part in ("--cap", size)]
    argv += ["--output", str(output)] if output else []
    argv += ["--gpu", gpu] if gpu else []
    argv += ["--trace"] * trace + ["--list"] * list_only + ["--json"] * json
    # Measuring takes this process over: signals reach it, and no end of this one leaves it behind.
    os.execv(sys.executable, argv)  # noqa: S606 - our own module
