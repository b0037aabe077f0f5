"""The network that a step runs: the model, with the head that its objective wants."""

from dataclasses import replace
from functools import lru_cache

from planner.run_config import Objective
from profiles.architecture import Architecture, Linear
from profiles.build_architecture import architecture
from profiles.model import ModelProfile


def network(model: ModelProfile, objective: Objective) -> Architecture:
    """The parts of `model` as `objective` trains them; a reward model has a head of one score instead of words."""
    parts = architecture(model)
    return _with_score(parts) if objective == "reward" else parts


@lru_cache(maxsize=256)
def _with_score(parts: Architecture) -> Architecture:
    return replace(parts, head=Linear("score", parts.head.in_features, 1), tied=False, logit_softcap=None)
