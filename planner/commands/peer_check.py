"""`fitune estimate` of another trainer's file: the answer, the file that fits, and the exit code."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from planner.asking.wishes import Wishes
from planner.commands.own_card import card_or_told
from planner.commands.plotting import check_plot, write_plot
from planner.commands.showing import Show
from planner.commands.terminal import tracing
from planner.peers.check import PeerAnswer, check_file, peer_of
from planner.peers.fix import Fix
from planner.predict.prediction import OWN_TRAINER
from planner.report.document import print_json
from planner.whole_file import whole_file
from profiles.errors import ConfigError, InputError


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """What is asked about the file: its format and model where they are not in it, and whether and where to write."""

    format: str | None
    model: str | None
    fix: bool
    output: Path | None
    strict: bool
    trainer: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Written:
    """Where the fixed file is, and a backup of the old one if it is in its place."""

    path: Path
    backup: Path | None


def peer_answered(subject: str, gpu: str | None, wishes: Wishes, options: PeerOptions, show: Show) -> int | None:
    """Answer for the file of another trainer and return the exit code; None for a run file of our own.

    Raises InputError for a file that cannot be read or comes to no run.
    """
    found = peer_of(Path(subject), options.format)
    if found is None:
        return None
    _check_options(subject, options)
    check_plot(show.plot)
    answer = check_file(*found, card_or_told(gpu), options.model, wishes, exact=options.exact, tracing=tracing)
    if options.strict and (missing := answer.file.not_counted):
        names = ", ".join(account.key for account in missing)
        raise ConfigError(f"{subject} has keys that are not in the estimate: {names}", hint="leave --strict away")
    write_plot(answer, show.plot)
    written = _write(answer.fix, options.output, Path(subject)) if answer.fix and options.fix else None
    _report(answer, written, show)
    return 0 if written or answer.verdict != "no" else 1


def _check_options(subject: str, options: PeerOptions) -> None:
    if options.trainer != OWN_TRAINER:
        raise ConfigError(f"--trainer is {options.trainer}, but {subject} says whose step it is", hint="leave it out")
    if options.output is None:
        return
    if not options.fix:
        raise ConfigError(f"-o {options.output} is for the file that --fix writes", hint="add --fix")
    if options.output.exists():
        hint = "name another, or leave -o away to change the file in place, with a backup"
        raise ConfigError(f"there is a file {options.output} already", hint=hint)


def _write(fix: Fix, output: Path | None, path: Path) -> Written:
    """Write the fixed file whole or not at all: where it was asked for, or in place of the old one."""
    place, backup = output or path, None
    try:
        with whole_file(place) as unfinished:
            unfinished.write_text(fix.document.text, encoding="utf-8")
            if output is None:
                shutil.copymode(path, unfinished)
                backup = _free_name(path)
                shutil.copy2(path, backup)
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error}", hint="-o names another place") from error
    return Written(place, backup)


def _free_name(path: Path) -> Path:
    """A name for a backup beside `path` that is not taken."""
    number = 0
    while (name := path.with_name(f"{path.name}.bak{number or ''}")).exists():
        number += 1
    return name


def _report(answer: PeerAnswer, written: Written | None, show: Show) -> None:
    from planner.report.console import data_console
    from planner.report.peer_answer import peer_document, print_peer_answer

    if show.json:
        where = {"written": str(written.path), "backup": str(written.backup or "") or None} if written else {}
        print_json(peer_document(answer) | where)
    else:
        print_peer_answer(data_console(), answer, explain=show.explain)
    if written is not None:
        kept = f"; the old one is {written.backup}" if written.backup else ""
        sys.stderr.write(f"\n{written.path} is written{kept}\n")
    elif answer.fix is not None:
        sys.stderr.write(f"\n--fix writes that to {answer.file.document.path}, with a backup; -o FILE elsewhere\n")
