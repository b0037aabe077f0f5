"""`fitune serve`: the page, the HTTP API and the MCP server, on this machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from planner.commands.serve_extra import needs_extra
from profiles.errors import ConfigError, RunError

USUAL_RUNS = Path("runs")


def serve(
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", help="The port; 0 takes a free one.", min=0)] = 7860,
    model_folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--model-folder", metavar="FOLDER", help="A folder with a config.json that may be asked about; repeatable."
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            "--runs", metavar="FOLDER", help="Show the runs below this folder.", show_default="runs/, locally"
        ),
    ] = None,
    no_hub: Annotated[
        bool, typer.Option("--no-hub", help="Ask no network about models that are not in the catalog.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> int:
    """Serve a page that answers, and the same answers over HTTP and MCP.

    The page is at /, the API at /api with its description at /openapi.json and /reference, the MCP server at /mcp.

    It works without internet, and reads no file of this machine but the run folder and the model folders that it is
    given. Past and running launches are at /runs; with --host only if --runs names their folder.

    \b
    Examples:
      fitune serve --open
      fitune serve --port 8000 --model-folder ./my-model
      fitune serve --host 0.0.0.0 --no-hub
    """
    with needs_extra():
        from planner.serve.app import ServerSettings
        from planner.serve.listen import listen

    for folder in model_folders or ():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--model-folder is {folder}, which has no config.json")
    if runs is not None and not runs.is_dir():
        raise ConfigError(f"--runs is {runs}, but there is no such folder", hint="`fitune launch` makes it")
    settings = ServerSettings(host=host, folders=tuple(model_folders or ()), hub=not no_hub, runs=runs)
    if settings.is_local and runs is None:
        settings = ServerSettings(
            host, settings.folders, settings.hub, USUAL_RUNS if USUAL_RUNS.is_dir() else None, with_store=True
        )
    try:
        listen(settings, port, lambda url: _started(url, open_))
    except OSError as error:
        raise RunError(f"{host}:{port} cannot be listened at: {error.strerror}", hint="try another --port") from error
    return 0


def _started(url: str, open_: bool) -> None:
    sys.stderr.write(f"fitune is at {url}  (Ctrl-C ends it)\n")
    if open_:
        import webbrowser

        webbrowser.open(url)
