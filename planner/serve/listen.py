"""Listens at an address until it is interrupted."""

import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from planner.serve.app import ServerSettings, create_app

KEEP_ALIVE_SECONDS = 5
GRACE_SECONDS = 2


def listen(settings: ServerSettings, port: int, on_start: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `on_start` is called with the address once it is open. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((settings.host, port))
        # Who reads the address may ask at once; the answer comes when the server runs.
        opened.listen()
        shown = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
        config = uvicorn.Config(
            create_app(settings),
            log_level="warning",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        on_start(f"http://{shown}:{opened.getsockname()[1]}")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([opened])
