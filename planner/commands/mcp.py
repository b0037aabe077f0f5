"""`fitune mcp`: the verbs as tools of an assistant, on stdin and stdout."""

from typing import Annotated

import typer

from planner.commands.serve_extra import needs_extra


def mcp(
    no_hub: Annotated[
        bool, typer.Option("--no-hub", help="Ask no network about models that are not in the catalog.")
    ] = False,
) -> int:
    """Serve the verbs as an MCP server on stdin and stdout, for an assistant that starts it.

    Its tools are can, plan, estimate, gpus, models, recipes, methods and schema. `fitune serve` has the same at /mcp.

    \b
    Examples:
      claude mcp add fitune -- fitune mcp
      fitune mcp --no-hub
    """
    with needs_extra():
        from planner.serve.app import ServerSettings
        from planner.serve.mcp_server import serve_stdio

    serve_stdio(ServerSettings(hub=not no_hub).access())
    return 0
