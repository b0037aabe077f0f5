"""The one JSON object that a verb prints with --json."""

import json
import sys
from collections.abc import Mapping


def print_json(document: Mapping[str, object]) -> None:
    """Print `document` on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
