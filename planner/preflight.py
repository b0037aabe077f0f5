"""Many files at once, before a job starts: `python -m planner.preflight --gpu t4 FILE...`.

This is what the GitHub Action and the pre-commit hook of this repository run. Each file is one line, and the exit code
is that of the worst: 0 all fit, 1 one does not, 2 one cannot be used.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.asking.wishes import Wishes
from planner.peers.check import check_file, peer_of
from planner.peers.document import as_written, read_document
from planner.peers.recognition import recognize
from planner.predict.prediction import Prediction
from planner.units import format_bytes
from planner.verbs.answers import predicted
from profiles.errors import ConfigError, FituneError

FITS, DOES_NOT_FIT, BAD_INPUT = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is said about one file, and its exit code."""

    path: Path
    message: str
    code: int


def main(argv: Sequence[str] | None = None) -> int:
    """Check each file and return the worst exit code."""
    options = _parser().parse_args(argv)
    paths = list(_paths(options.files, options.skip_unknown))
    outcomes = [checked(path, options.gpu, strict=options.strict) for path in paths]
    for outcome in outcomes:
        _tell(outcome)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as page:
            page.write(_table(outcomes))
    return max((outcome.code for outcome in outcomes), default=FITS)


def checked(path: Path, gpu: str, *, strict: bool = False) -> Outcome:
    """The answer for one file: a run file, or one of another trainer."""
    try:
        return _checked(path, gpu, strict)
    except FituneError as error:
        return Outcome(path, f"{error.message}{f' ({error.hint})' if error.hint else ''}", BAD_INPUT)


def _checked(path: Path, gpu: str, strict: bool) -> Outcome:
    found = peer_of(path)
    if found is None:
        prediction = predicted(str(path), gpu, Wishes(), "fitune", exact=False)
        return Outcome(path, _words(prediction), DOES_NOT_FIT if prediction.verdict == "no" else FITS)
    answer = check_file(*found, gpu)
    missing = [account.key for account in answer.file.not_counted]
    if strict and missing:
        raise ConfigError(f"it has keys that are not in the estimate: {', '.join(missing)}")
    message = "; ".join([_words(answer), *([answer.caveat] if answer.caveat else []), *answer.objections])
    if answer.fix is not None:
        changes = ", ".join(f"{change.key}: {as_written(change.new)}".rstrip() for change in answer.fix.changes)
        message += f". The smallest change that fits: {changes}"
    if missing:
        message += f". Not counted: {', '.join(missing)}"
    return Outcome(path, message, DOES_NOT_FIT if answer.verdict == "no" else FITS)


def _words(prediction: Prediction) -> str:
    needed, usable = format_bytes(prediction.estimate.process_bytes), format_bytes(prediction.usable_bytes)
    card = prediction.target.gpu.name if prediction.target.gpu else "this CPU"
    return f"{prediction.verdict}: {prediction.target.name} takes {needed} of {usable} on {card}"


def _paths(patterns: Sequence[str], skip_unknown: bool) -> Iterator[Path]:
    """The files that are named or match a pattern; with `skip_unknown` only those in a known format."""
    for pattern in patterns:
        named = Path(pattern)
        found = [named] if named.exists() else sorted(Path(named.anchor).glob(str(named.relative_to(named.anchor))))
        yield from (path for path in found or [named] if not skip_unknown or _is_known(path))


def _is_known(path: Path) -> bool:
    try:
        return recognize(read_document(path).values) is not None
    except ConfigError:
        return False


def _tell(outcome: Outcome) -> None:
    sys.stdout.write(f"{outcome.path}: {outcome.message}\n")
    if outcome.code and os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stdout.write(f"::error file={outcome.path}::{outcome.message}\n")


def _table(outcomes: Sequence[Outcome]) -> str:
    words = {FITS: "passed", DOES_NOT_FIT: "does not fit", BAD_INPUT: "cannot be used"}
    rows = "".join(f"| {one.path} | {words[one.code]} | {one.message} |\n" for one in outcomes)
    return f"| file | check | answer |\n|---|---|---|\n{rows}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m planner.preflight", description="Do these runs fit the card?")
    parser.add_argument("files", nargs="*", metavar="FILE", help="run files, files of other trainers, or patterns")
    parser.add_argument("--gpu", required=True, metavar="GPU", help="the card, as in `fitune can`")
    parser.add_argument("--strict", action="store_true", help="refuse keys that are not in the estimate")
    parser.add_argument("--skip-unknown", action="store_true", help="pass over files that are no configuration")
    return parser


if __name__ == "__main__":
    sys.exit(main())
