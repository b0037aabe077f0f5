"""What the form offers: models, cards by generation, recipes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.search.common_cards import COMMON_CARDS
from planner.units import GIB, format_count
from planner.verbs.answers import ANY
from planner.verbs.facts import find_models, num_parameters
from profiles.gpu_catalog import all_gpus
from profiles.recipe import all_recipes

SIZES = ("8GB", "12GB", "16GB", "24GB", "32GB", "40GB", "48GB", "80GB")


@dataclass(frozen=True, slots=True)
class FormChoices:
    """Names to choose from, each with a word on it; cards are in groups."""

    models: tuple[tuple[str, str], ...]
    gpus: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    recipes: tuple[tuple[str, str], ...]

    def knows_gpu(self, name: str) -> bool:
        """Whether a card of this name is offered."""
        return any(name == value for _, options in self.gpus for value, _ in options)


def form_choices(has_card: bool, folders: Sequence[Path]) -> FormChoices:
    """All that is offered; this machine's card only if it has one."""
    models = [(str(folder), "folder") for folder in folders]
    models += [(model.hf_id, format_count(num_parameters(model))) for model in find_models(None)]
    return FormChoices(
        models=tuple(models),
        gpus=(
            ("", tuple(_general(has_card))),
            ("Common", _cards(COMMON_CARDS)),
            *_generations(),
            ("By size", _sizes()),
        ),
        recipes=tuple((recipe.name, recipe.about) for recipe in all_recipes().values()),
    )


def _general(has_card: bool) -> list[tuple[str, str]]:
    general = [(ANY, "any common card")]
    return [("auto", "the card of this machine"), *general] if has_card else general


def _cards(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    by_name = {gpu.name: gpu for gpu in all_gpus()}
    return tuple((name, f"{name} ({by_name[name].memory_bytes / GIB:.1f} GiB)") for name in names)


def _generations() -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    groups: dict[str, list[str]] = {}
    for gpu in all_gpus():
        if gpu.name not in COMMON_CARDS:
            groups.setdefault(f"{gpu.vendor} {gpu.architecture}", []).append(gpu.name)
    return [(group, _cards(sorted(names))) for group, names in groups.items()]


def _sizes() -> tuple[tuple[str, str], ...]:
    return tuple((size, f"a card of {size}") for size in SIZES)
