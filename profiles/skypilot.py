"""What SkyPilot calls the cards (`skypilot.toml`)."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType


@cache
def accelerator_names() -> Mapping[str, str]:
    """SkyPilot's names by those of our catalog, read once."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return MappingProxyType(table["accelerators"])
