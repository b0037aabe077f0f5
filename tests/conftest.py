import os
import signal


def pytest_configure() -> None:
    """Keep the runs of tests out of the store of whoever runs them, and hear Ctrl-C.

    A shell starts its background jobs with that signal ignored, and so would be all that the tests start.
    """
    os.environ["FITUNE_STORE"] = ""
    signal.signal(signal.SIGINT, signal.default_int_handler)
