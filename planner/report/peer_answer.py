"""The answer about another trainer's file: the verdict, what is not in it, and the smallest change that fits."""

from collections import Counter
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from planner.peers.check import PeerAnswer
from planner.peers.document import as_written
from planner.peers.fix import KeyChange
from planner.peers.keys import KeyAccount, Status
from planner.peers.peer_file import PeerFile
from planner.report.answer import size_words
from planner.report.breakdown import print_breakdown
from planner.report.console import print_hanging
from planner.report.plan_document import Document, prediction_document
from planner.report.table import Column, print_table
from planner.units import format_bytes

STATUS_WORDS: dict[Status, str] = {
    "understood": "understood",
    "no effect": "without effect on memory",
    "off": "at the default",
    "not modeled": "not in the estimate",
    "unknown": "unknown",
}
EFFECT_WORDS = {"more": "takes more", "less": "takes less", "either": "takes more or less", None: ""}

KEY_COLUMNS = (Column("key"), Column("is", rank=2), Column("account"), Column("why", rank=1))
CHANGE_COLUMNS = (Column("key"), Column("now"), Column("then"))


def print_peer_answer(console: Console, answer: PeerAnswer, *, explain: bool) -> None:
    """Print the verdict and the breakdown, how the file was read, what is not counted, and what would make it fit."""
    file = answer.file
    print_breakdown(console, answer, explain=explain)
    console.print()
    for objection in answer.objections:
        print_hanging(console, Text("against it: ", style="bold red"), objection)
    print_hanging(console, Text("read as: ", style="dim"), _read_as(file))
    print_hanging(console, Text("keys: ", style="dim"), _key_counts(file))
    for account in file.not_counted:
        print_hanging(console, Text("not counted: ", style="bold yellow"), _not_counted(account))
    for remark in file.remarks:
        print_hanging(console, Text("note: ", style="dim"), remark)
    if explain:
        _print_keys(console, file)
    memory_fits = answer.estimate.interval_bytes[1] <= answer.usable_bytes
    if not memory_fits or answer.objections:
        _print_fix(console, answer)


def _print_fix(console: Console, answer: PeerAnswer) -> None:
    """Print the smallest change of keys that fits, or that there is none."""
    if answer.fix is None:
        console.print("\nNo change of its keys that is known here makes it fit.")
        return
    console.print("\nThe smallest change that fits:")
    print_table(console, CHANGE_COLUMNS, [_change_row(change) for change in answer.fix.changes], whole=True)
    usable = format_bytes(answer.usable_bytes)
    aside = answer.may_take("more")
    beside = f", and what {' and '.join(aside)} add{'' if len(aside) > 1 else 's'}" if aside else ""
    console.print(f"It then takes {size_words(answer.fix.prediction.estimate)} of {usable}{beside}.", soft_wrap=True)


def peer_document(answer: PeerAnswer) -> Document:
    """The answer with all keys accounted for, and the change, as one object."""
    file, fix = answer.file, answer.fix
    return prediction_document(answer) | {
        "file": str(file.document.path),
        "format": file.peer.name,
        "format_version": file.peer.keys.version,
        "objections": list(answer.objections),
        "keys": [asdict(account) for account in file.accounts],
        "remarks": list(file.remarks),
        "fix": fix
        and {
            "changes": [asdict(change) for change in fix.changes],
            "estimate": prediction_document(fix.prediction),
        },
    }


def _read_as(file: PeerFile) -> str:
    keys = file.peer.keys
    return f"a file of {keys.format} (version {keys.version}), with its defaults for what is not there"


def _key_counts(file: PeerFile) -> str:
    counts = Counter(account.status for account in file.accounts)
    parts = [f"{counts[status]} {words}" for status, words in STATUS_WORDS.items() if counts[status]]
    return ", ".join(parts)


def _not_counted(account: KeyAccount) -> str:
    words = f"{account.key}: {_shown(account.value)}"
    if account.status == "unknown":
        return f"{words}; {account.why}"
    return f"{words}; {account.why}, which {EFFECT_WORDS[account.effect]}"


def _print_keys(console: Console, file: PeerFile) -> None:
    console.print("\nEach key:")
    rows = [[one.key, _shown(one.value), STATUS_WORDS[one.status], one.why] for one in file.accounts]
    print_table(console, KEY_COLUMNS, rows)


def _change_row(change: KeyChange) -> list[str]:
    then = "(taken out)" if change.new is None else as_written(change.new)
    return [change.key, "(not there)" if change.old is None else as_written(change.old), then]


def _shown(value: object) -> str:
    text = as_written(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
