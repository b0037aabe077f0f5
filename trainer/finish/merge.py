"""The process that merges an adapter into its base: `python -m trainer.finish.merge RUN_OR_ADAPTER [-o OUT] ...`."""

import argparse
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from planner.config.run_config import DTYPE_BYTES, Dtype
from planner.report.console import notes_console
from planner.report.document import print_json
from planner.report.error import print_error
from planner.units import format_bytes, format_seconds
from profiles.errors import EnvironmentFault, FituneError, InputError, RunError
from profiles.main_memory import available_memory_bytes
from trainer.finish.gguf import check_type, convert, find_converter
from trainer.loop.notices import hold_back_notices
from trainer.run_folder.finished_run import FinishedRun, find_finished_run
from trainer.supervisor.interruption import Interrupted, Interruption, handling

if TYPE_CHECKING:
    from trainer.finish.merge_weights import Advance

MERGED = "merged"
"""Name of the folder of a merged model, in the folder of its run."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked for: None is the usual folder, the adapter's own base, the base's dtype, and no GGUF file."""

    path: Path
    out: Path | None = None
    base: str | None = None
    dtype: Dtype | None = None
    gguf: str | None = None
    llama_cpp: Path | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a model of `num_bytes` in `folder`, and perhaps a GGUF file."""

    folder: str
    base: str | None
    dtype: str | None
    num_bytes: int
    seconds: float
    gguf: str | None = None


def run(task: Task, console: Console) -> Outcome:
    """Merge, then convert if that is asked for; a folder that is a model already is only converted.

    Raises InputError, EnvironmentFault for a lack of memory, disk or llama.cpp, and RunError.
    """
    started = time.monotonic()
    # Before the minutes that a merge takes.
    converter = find_converter(task.llama_cpp, os.environ) if task.gguf and check_type(task.gguf) else None
    finished = find_finished_run(task.path)
    if finished.adapter is None and task.gguf is None:
        raise InputError(
            f"{finished.folder} holds a whole model, so there is nothing to merge",
            hint="it is ready to use: `fitune chat` talks to it, --gguf TYPE converts it",
        )
    if finished.adapter is None:
        folder, base, dtype = finished.folder, None, None
    else:
        base = task.base or finished.base
        folder, dtype = merge(finished, base, task, console)
    gguf = convert(converter, folder, task.gguf) if converter and task.gguf else None
    return Outcome(
        folder=str(folder),
        base=base,
        dtype=dtype,
        num_bytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        seconds=time.monotonic() - started,
        gguf=str(gguf) if gguf else None,
    )


def merge(finished: FinishedRun, base_name: str, task: Task, console: Console) -> tuple[Path, str]:
    """Write the merged model; the folder, which appears whole or not at all, and the dtype of its weights."""
    out = task.out or _usual_folder(finished)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already", hint="remove it, or choose another folder with -o")
    with console.status("reading the adapter and its base"):
        hold_back_notices()
        # The libraries take seconds to import; a mistake in the paths is told before.
        import torch
        from transformers.utils.logging import disable_progress_bar

        from trainer.finish.base_checkpoint import open_base
        from trainer.finish.merge_weights import plan_merge
        from trainer.finish.model_card import model_card
        from trainer.finish.model_folder import write_companions

        disable_progress_bar()
        base = open_base(base_name)
        dtype = task.dtype or str(base.dtype).removeprefix("torch.")
        weights = plan_merge(base, finished.folder, getattr(torch, dtype), finished.trust_remote_code)
    _check_room(weights.memory_bytes, weights.disk_bytes, out)
    if finished.config is not None and finished.config.quantization is not None:
        console.print(
            f"note: the adapter learned on {finished.config.quantization} weights and is merged into those they were "
            "made from, so answers can differ a little",
            soft_wrap=True,
        )
    name = task.out.name if task.out else finished.run_folder.resolve().name
    card = model_card(name, base_name, base.folder, finished, dtype)
    with _disk_problems(out), _appearing_whole(out) as folder:
        with _progress(console, weights.disk_bytes) as advance:
            weights.write(folder, advance)
        write_companions(folder, base, finished, card, weights.unties, dtype)
    return out, dtype


def _usual_folder(finished: FinishedRun) -> Path:
    """Beside the final weights of a run, or beside the folder of an adapter that stands alone."""
    if finished.config is not None:
        return finished.folder.parent / MERGED
    folder = finished.folder.resolve()
    return folder.with_name(f"{folder.name}-{MERGED}")


def _check_room(memory_bytes: int, disk_bytes: int, out: Path) -> None:
    """Raise EnvironmentFault if the merge would run out of memory or disk."""
    available = available_memory_bytes()
    if available < memory_bytes:
        raise EnvironmentFault(
            f"the merge needs {format_bytes(memory_bytes)} of main memory, but {format_bytes(available)} are free",
            hint="close other programs, or merge on a machine with more memory",
        )
    folder = next(place for place in out.absolute().parents if place.exists())
    free = shutil.disk_usage(folder).free
    if free < disk_bytes:
        raise EnvironmentFault(
            f"the merged model in {out} needs {format_bytes(disk_bytes)}, but {format_bytes(free)} are free",
            hint="free some space, or choose a folder on another disk with -o",
        )


@contextmanager
def _disk_problems(out: Path) -> Iterator[None]:
    """Say in a sentence that a disk is full or refuses."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the merged model cannot be written to {out}: {error}",
            hint="free some space, or choose a folder on another disk with -o",
        ) from error


@contextmanager
def _appearing_whole(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` to write into, which becomes `out` at the end and goes away if the end never comes.

    What a killed process left is cleared by the next one.
    """
    unfinished = out.absolute().with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        # An empty folder of that name may be there.
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _progress(console: Console, num_bytes: int) -> Iterator["Advance"]:
    """A bar of the bytes written, on a terminal; nothing elsewhere, because a merge takes minutes and not hours."""
    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=num_bytes)
        yield lambda more: progress.advance(bar, more)


def main(argv: Sequence[str] | None = None) -> int:
    """Merge from the command line; errors are told in one sentence."""
    arguments = _parser().parse_args(argv)
    as_json = arguments.json
    task = Task(**{name: value for name, value in vars(arguments).items() if name != "json"})
    console = notes_console()
    try:
        with handling(Interruption().receive), warnings.catch_warnings():
            # PEFT still uses names that Transformers will drop in its next major version.
            warnings.simplefilter("ignore", FutureWarning)
            outcome = run(task, console)
    except FituneError as error:
        print_error(error.message, error.hint, exit_code=error.exit_code, as_json=as_json)
        return error.exit_code
    except Interrupted as stop:
        console.print("stopped; nothing is left of the merge")
        return stop.exit_code
    if as_json:
        print_json(asdict(outcome))
    else:
        _tell(outcome, console)
    return 0


def _tell(outcome: Outcome, console: Console) -> None:
    """What was written, and where."""
    if outcome.base is not None:
        size, time_taken = format_bytes(outcome.num_bytes), format_seconds(outcome.seconds)
        console.print(f"{outcome.base} with the adapter: {size} of {outcome.dtype} in {time_taken}", soft_wrap=True)
        console.print(f"done: {outcome.folder}", soft_wrap=True)
    if outcome.gguf is not None:
        console.print(f"done: {outcome.gguf}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.finish.merge", description="Merge an adapter into its base."
    )
    parser.add_argument("path", type=Path, help="folder of a run, or of an adapter")
    parser.add_argument("--out", type=Path, help="folder of the merged model")
    parser.add_argument("--base", help="the 16-bit base model, if not the one that the adapter names")
    parser.add_argument("--dtype", choices=tuple(DTYPE_BYTES), help="of the merged weights, if not the base's")
    parser.add_argument("--gguf", metavar="TYPE", help="convert the model to GGUF too")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="where llama.cpp's converter is")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
