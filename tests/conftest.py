import os
import signal
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """Keep the runs of tests out of the store of whoever runs them."""
    os.environ["FITUNE_STORE"] = ""


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Hear Ctrl-C in every test: a shell starts its background jobs with that signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
