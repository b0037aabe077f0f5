"""Can I fine-tune this model on my GPU? The functions behind `fitune can`, `fitune plan` and `fitune estimate`.

import planner

planner.can("7b", "t4").verdict
planner.plan("mistral-7b", "24GB").config
planner.estimate("7b", "t4", method="qlora").estimate.process_bytes
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.verbs.answers import can as can
    from planner.verbs.answers import estimate as estimate
    from planner.verbs.answers import plan as plan

VERBS = ("can", "plan", "estimate")

__all__ = ["can", "estimate", "plan"]


def __getattr__(name: str) -> object:
    # Importing planner stays instant: the command line imports single modules of it, each as it is needed.
    if name in VERBS:
        from planner.verbs import answers

        return getattr(answers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *VERBS})
