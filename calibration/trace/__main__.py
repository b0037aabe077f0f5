"""Writes a traced step to a file to look at, allocation by allocation.

`python -m calibration.trace 7b --gpu t4 -o step.pickle` writes what torch calls a memory snapshot, to be dropped onto
https://pytorch.org/memory_viz; a name that ends in .json gets the same as plain data.
"""

import json
import pickle
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from calibration.allocator.loading import with_loading
from calibration.allocator.stream import Stream
from calibration.exact import traced
from planner.asking.subject import configuration
from planner.asking.wishes import Wishes
from planner.config.settings import knobs_in
from planner.predict.prediction import OWN_TRAINER
from planner.predict.traced import TraceQuestion
from profiles.errors import ConfigError, FituneError

FORMATS = (".pickle", ".json")


def as_data(stream: Stream) -> dict[str, Any]:
    """The stream as plain data: allocations in bytes, and events with the phases that begin at some of them.

    An event is the number of an allocation that begins, or its complement (-1 - number) where it ends.
    """
    return {
        "allocations": [asdict(one) for one in stream.allocations],
        "events": stream.events,
        "phases": stream.phases,
    }


def as_snapshot(stream: Stream) -> dict[str, Any]:
    """The stream as `torch.cuda.memory._snapshot` gives the history of a card; no address is used twice."""
    addresses, top = [], 0
    for one in stream.allocations:
        addresses.append(top)
        top += one.bytes
    history: list[dict[str, Any]] = []
    for event, phase in stream.phase_of_events():
        index = event if event >= 0 else ~event
        one = stream.allocations[index]
        made_by = {"name": f"{one.kind}: {one.name}", "filename": one.module, "line": 0}
        frames = [made_by, {"name": f"{phase} phase", "filename": "", "line": 0}]
        what = {"addr": addresses[index], "size": one.bytes, "stream": 0, "time_us": len(history), "frames": frames}
        actions = ("alloc",) if event >= 0 else ("free_requested", "free_completed")
        history += [what | {"action": action} for action in actions]
    return {"segments": [], "device_traces": [history]}


def main(
    subject: Annotated[str, typer.Argument(metavar="MODEL|FILE", help="As for `fitune estimate`.")],
    output: Annotated[Path, typer.Option("-o", help="A .pickle for memory_viz, or a .json.")],
    gpu: Annotated[str | None, typer.Option(help="The card; without one, a CPU.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A knob of the run, as in `fitune plan`.")] = None,
) -> None:
    """Trace two training steps, with the weights loaded before them, and write the stream of allocations."""
    try:
        _write(subject, output, gpu, settings or [])
    except FituneError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"\nhint: {error.hint}\n" if error.hint else ""))
        raise typer.Exit(2) from error


def _write(subject: str, output: Path, gpu: str | None, settings: list[str]) -> None:
    if output.suffix not in FORMATS:
        raise ConfigError(f"{output} is neither a .pickle nor a .json file")
    config, target = configuration(subject, gpu, Wishes(knobs=knobs_in(settings)))
    question = TraceQuestion(
        config=config,
        gpu=target.gpu,
        trainer=OWN_TRAINER,
        model=target.model,
        folder=target.folder,
        usable_bytes=0,
    )
    step, stream = traced(question)
    loaded = with_loading(stream, step) if target.gpu else stream
    if output.suffix == ".json":
        output.write_text(json.dumps(as_data(loaded)), "utf-8")
    else:
        output.write_bytes(pickle.dumps(as_snapshot(loaded)))
    sys.stderr.write(f"{len(loaded.allocations):,} allocations of two steps in {output}\n")


if __name__ == "__main__":
    typer.run(main)
