"""The command line: `fitune VERB ...`. Each verb is a function in `planner/commands`."""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, cast

import typer

from profiles.errors import FituneError

# Recent versions of typer carry their own copy of click, so this is the one name of click's usage errors in all.
UsageError = cast(type[typer.BadParameter], typer.BadParameter.__base__)

INTERRUPTED = 130

RARELY = 100_000
"""Objects between two collections: a short process makes many that stay and next to no garbage."""

VERBS = (
    "can",
    "data",
    "plan",
    "estimate",
    "export",
    "launch",
    "merge",
    "chat",
    "gpus",
    "models",
    "methods",
    "recipes",
    "runs",
    "calibrate",
    "doctor",
    "schema",
    "serve",
    "mcp",
)


def application(verbs: Sequence[str] = VERBS) -> typer.Typer:
    """The command line with these verbs."""
    app = typer.Typer(
        name="fitune",
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_fitune)
    for verb in verbs:
        app.command()(getattr(import_module(f"planner.commands.{verb}"), verb))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from planner.version import version

        found = version() or "of an unknown version: it runs from a folder and is not installed"
        sys.stdout.write(f"fitune {found}\n")
        raise typer.Exit


def _fitune(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Can I fine-tune this model on my GPU? Answers, writes a configuration that fits, launches it.

    \b
    fitune can 7b --gpu t4
    fitune plan 7b --gpu t4 --data chats.jsonl -o run.yaml
    fitune launch run.yaml
    """
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 fits or done, 1 does not fit or failed, 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Half of the time of an answer goes to imports: a verb does without those of the others, and pydantic without a
    # search for its plugins in all packages that are installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    gc.set_threshold(RARELY)
    app = application(arguments[:1] if arguments[:1] and arguments[0] in VERBS else VERBS)
    try:
        return int(app(args=arguments, prog_name="fitune", standalone_mode=False) or 0)
    except FituneError as error:
        return _fail(error.message, error.hint, error.exit_code, arguments)
    except UsageError as error:
        return _fail(*_explain_usage(error), 2, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED


def _fail(message: str, hint: str | None, exit_code: int, arguments: Sequence[str]) -> int:
    from planner.report.error import print_error

    print_error(message, hint, exit_code=exit_code, as_json="--json" in arguments)
    return exit_code


def _explain_usage(error: typer.BadParameter) -> tuple[str, str | None]:
    """A usage error in the words of the others: what is wrong, and what to type."""
    possibilities = sorted(getattr(error, "possibilities", None) or [])
    said = error.message if possibilities else error.format_message()
    message, _, suggestion = said.replace("Value error, ", "").partition(" Did you mean ")
    message = message.rstrip(".")
    if suggestion or possibilities:
        return message, f"did you mean {suggestion.rstrip('?') or ' or '.join(possibilities)}?"
    command = error.ctx.command_path if error.ctx else "fitune"
    return message, f"`{command} --help` shows what it takes"


if __name__ == "__main__":
    sys.exit(main())
