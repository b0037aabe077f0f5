"""A first talk with a trained model in the terminal: `python -m trainer.finish.talk FOLDER [--prompt TEXT]`."""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from planner.report.console import notes_console
from planner.report.document import print_json
from planner.report.error import print_error
from profiles.errors import FituneError, InputError
from trainer.data.formats import Message
from trainer.loop.notices import hold_back_notices
from trainer.run_folder.finished_run import find_finished_run

if TYPE_CHECKING:
    from trainer.finish.answers import Answers, Sampling

INTERRUPTED = 130
PROMPT = "> "


def say(answers: "Answers", messages: Sequence[Message], sampling: "Sampling") -> tuple[str, bool]:
    """Print the answer to `messages` as it is written; the answer, and whether Ctrl-C cut it short."""
    pieces = []
    try:
        for piece in answers.stream(messages, sampling):
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        answers.stop()
        sys.stdout.write("\n")
        return "".join(pieces), True
    sys.stdout.write("\n")
    return "".join(pieces), False


def converse(answers: "Answers", system: str | None, sampling: "Sampling", console: Console) -> int:
    """Answer each line of stdin, with the conversation so far in mind, until it ends; the exit code."""
    messages = _opening(system)
    for question in _questions(console):
        messages.append({"role": "user", "content": question})
        try:
            answer, _ = say(answers, messages, sampling)
        except InputError as error:
            messages = _opening(system)
            console.print(f"note: {error.message}; it is forgotten, the next line begins a new one", soft_wrap=True)
            continue
        messages.append({"role": "assistant", "content": answer})
    return 0


def answer_once(answers: "Answers", messages: list[Message], sampling: "Sampling", as_json: bool) -> int:
    """Answer one question; the exit code."""
    if not as_json:
        _, interrupted = say(answers, messages, sampling)
        return INTERRUPTED if interrupted else 0
    started = time.monotonic()
    answer = "".join(answers.stream(messages, sampling))
    tokens = answers.tokenizer(answer, add_special_tokens=False)["input_ids"]
    seconds = time.monotonic() - started
    print_json({"prompt": messages[-1]["content"], "answer": answer, "num_tokens": len(tokens), "seconds": seconds})
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Talk from the command line; errors are told in one sentence."""
    arguments = _parser().parse_args(argv)
    try:
        return _talk(arguments, notes_console())
    except FituneError as error:
        print_error(error.message, error.hint, exit_code=error.exit_code, as_json=arguments.json)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def _talk(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.json and arguments.prompt is None:
        raise InputError("--json prints one answer, so it needs a question", hint="add --prompt TEXT")
    finished = find_finished_run(arguments.folder)
    with warnings.catch_warnings(), console.status("loading the model"):
        warnings.simplefilter("ignore", FutureWarning)
        hold_back_notices()
        # The libraries take seconds to import; a mistake in the folder is told before.
        from transformers.utils.logging import disable_progress_bar

        from trainer.finish.answers import Sampling, load_answers

        disable_progress_bar()
        answers = load_answers(finished)
    if not answers.has_template:
        console.print(
            "note: the model has no chat template, so it goes on with the text that it is given", soft_wrap=True
        )
    sampling = Sampling(arguments.max_new_tokens, arguments.temperature)
    if arguments.prompt is None:
        return converse(answers, arguments.system, sampling, console)
    question = {"role": "user", "content": arguments.prompt}
    return answer_once(answers, [*_opening(arguments.system), question], sampling, arguments.json)


def _opening(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _questions(console: Console) -> Iterator[str]:
    """The lines of stdin that are not empty; at a terminal with a prompt, with lines that can be edited."""
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        # Gives input() its arrow keys and its history.
        import readline  # noqa: F401

        console.print("Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            line = input(PROMPT if at_terminal else "")
        except EOFError:
            if at_terminal:
                console.print()
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            # A line that was begun and not wanted.
            console.print()
            continue
        if line.strip():
            yield line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer.finish.talk", description="Talk to a trained model.")
    parser.add_argument("folder", type=Path, help="folder of a run, of an adapter, or of a model")
    parser.add_argument("--prompt", help="one question; without it, each line of stdin is one")
    parser.add_argument("--system", help="what the model is told before the conversation")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
