"""The verbs as tools of an MCP server, for assistants: over HTTP at /mcp, or on stdin and stdout."""

import json
from typing import Any

import anyio
from anyio import to_thread
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations

from planner.asking.question import Access
from planner.serve.served_verbs import Document, served_verbs
from planner.version import version
from profiles.errors import FituneError

INSTRUCTIONS = (
    "fitune predicts whether a language model can be fine-tuned on a GPU, and with which settings. Ask `can` first; "
    "`plan` answers with a run file for `fitune launch`; `estimate` predicts one given configuration. Sizes are bytes."
)


def mcp_server(access: Access) -> Server[Any]:
    """A server whose tools are the verbs."""
    verbs = served_verbs()
    tools = [
        Tool(
            name=verb.name,
            description=verb.about,
            input_schema=verb.question.model_json_schema(),
            annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True),
        )
        for verb in verbs.values()
    ]

    async def list_tools(context: Any, params: Any) -> ListToolsResult:  # noqa: ANN401  # types of the library
        return ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: CallToolRequestParams) -> CallToolResult:  # noqa: ANN401
        verb = verbs.get(params.name)
        if verb is None:
            return _failure(f"there is no tool {params.name}", f"there are {', '.join(verbs)}")
        try:
            question = verb.parse(params.arguments or {})
            return _success(await to_thread.run_sync(verb.ask, question, access))
        except FituneError as error:
            return _failure(error.message, error.hint)

    return Server(
        "fitune",
        version=version() or "",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def serve_stdio(access: Access) -> None:
    """Serve on stdin and stdout until they are closed."""

    async def run() -> None:
        server = mcp_server(access)
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())

    anyio.run(run)


def _success(document: Document) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=json.dumps(document))], structured_content=document)


def _failure(message: str, hint: str | None) -> CallToolResult:
    words = f"{message}\nhint: {hint}" if hint else message
    return CallToolResult(content=[TextContent(text=words)], is_error=True)
