"""The version of fitune that is installed."""

from importlib import metadata


def version() -> str | None:
    """As in `0.1.0`; None where fitune runs from a folder and is not installed."""
    try:
        return metadata.version("fitune")
    except metadata.PackageNotFoundError:
        return None
