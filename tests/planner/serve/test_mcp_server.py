import json
import os
import sys
from pathlib import Path

import anyio
import pytest
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

import planner
from planner.report.plan_document import plan_document
from planner.serve.app import ServerSettings
from planner.serve.mcp_server import mcp_server
from planner.serve.served_verbs import served_verbs

ROOT = Path(__file__).parents[3]


def conversation(server, *calls):
    """The names of the tools of `server`, and its answers to `calls`."""

    async def talk():
        async with Client(server) as client:
            tools = await client.list_tools()
            return [tool.name for tool in tools.tools], [await client.call_tool(*call) for call in calls]

    return anyio.run(talk)


CAN = ("can", {"model": "7b", "gpu": "t4"})
BAD = ("can", {"model": "7b", "gpu": "x9000"})


def stdio():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FITUNE_STORE": ""}
    return StdioServerParameters(command=sys.executable, args=["-m", "planner.cli", "mcp", "--no-hub"], env=environment)


@pytest.mark.parametrize("way", ["in process", "http", "stdio"])
def test_the_tools_are_the_verbs_and_answer_as_they_do(way, served):
    servers = {
        "in process": lambda: mcp_server(ServerSettings().access()),
        "http": lambda: f"{served.url}/mcp",
        "stdio": stdio,
    }
    tools, (answer, refusal) = conversation(servers[way](), CAN, BAD)
    assert tools == list(served_verbs())
    expected = json.loads(json.dumps(plan_document(planner.can("7b", "t4"))))
    assert not answer.is_error
    assert answer.structured_content == expected
    assert json.loads(answer.content[0].text) == expected
    assert refusal.is_error
    assert refusal.content[0].text.startswith("no GPU is called 'x9000'")
    assert "hint: `fitune gpus`" in refusal.content[0].text


def test_what_no_tool_takes_is_refused():
    calls = [("can", {"model": "7b", "data": "rows.jsonl"}), ("can", {"model": "./here"}), ("cannot", {})]
    _, answers = conversation(mcp_server(ServerSettings().access()), *calls)
    words = [answer.content[0].text for answer in answers]
    assert all(answer.is_error for answer in answers)
    assert words[0].startswith("can has no data")
    assert words[1].startswith("folders of this machine are not read here")
    assert words[2].startswith("there is no tool cannot")
