"""What servers need beyond a command line."""

from collections.abc import Iterator
from contextlib import contextmanager

from profiles.errors import EnvironmentFault


@contextmanager
def needs_extra() -> Iterator[None]:
    """Turn a missing package of the `serve` extra into words on how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnvironmentFault(f"serving needs the package {error.name}", hint="pip install 'fitune[serve]'") from error
