"""Which card an answer is for where none is named."""

import sys

from planner.asking.question import find_card
from profiles.errors import EnvironmentFault


def card_or_told(gpu: str | None) -> str:
    """`gpu`; without one `auto`, or `cpu` where this machine has no card, with a word on stderr."""
    if gpu is not None:
        return gpu
    try:
        find_card("auto")
    except EnvironmentFault as fault:
        sys.stderr.write(f"{fault.message}; the answer is for its CPU\n")
        return "cpu"
    return "auto"
