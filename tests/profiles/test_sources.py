"""Every figure of the data files says where it comes from."""

import tomllib
from pathlib import Path

import pytest

PROFILES = Path(__file__).parents[2] / "profiles"
SAID = {"source", "sources", "records", "seen", "evidence", "note", "upstream"}


def unsourced(value, keys, known):
    """Paths of the tables with figures, neither they nor a table around them with a source."""
    if isinstance(value, dict):
        known = known or any(key in SAID or key.endswith("_source") for key in value)
        if not known and any(
            isinstance(inner, int | float) and not isinstance(inner, bool) for inner in value.values()
        ):
            yield ".".join(keys)
        for key, inner in value.items():
            yield from unsourced(inner, (*keys, key), known)
    elif isinstance(value, list):
        for inner in value:
            yield from unsourced(inner, keys, known)


@pytest.mark.parametrize("path", sorted(PROFILES.rglob("*.toml")), ids=lambda path: path.name)
def test_every_figure_has_a_source(path):
    assert list(unsourced(tomllib.loads(path.read_text("utf-8")), (), False)) == []
