"""The models that fitune knows by name, the reference shapes of bare sizes, and the way from a name to a model."""

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from profiles.build_architecture import architecture
from profiles.errors import UnknownModelError
from profiles.hub import CONFIG_NAME, read_hub_model, read_model_folder
from profiles.model import ModelProfile
from profiles.parameter_counts import parameter_counts

MODELS_FOLDER = Path(__file__).parent / "models"
REFERENCE_SIZES_FILE = MODELS_FOLDER / "reference_sizes.toml"

REFERENCE_TOLERANCE = 0.10
"""How far, as a fraction, a bare size may lie from the parameter count of the shape that answers for it."""

_BARE_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[mb])", re.IGNORECASE)
_UNIT = {"m": 10**6, "b": 10**9}


@dataclass(frozen=True, slots=True)
class ReferenceShape:
    """The named model that stands for a bare size, and why this one."""

    size: str
    hf_id: str
    why: str


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model and how its name was understood; `reference` is set where a bare size was asked for."""

    profile: ModelProfile
    origin: Literal["catalog", "folder", "hub"]
    reference: ReferenceShape | None = None


_HINT = "`fitune models` lists all names; a Hub id such as owner/name or a folder with config.json works too"


def resolve_model(name: str, *, folders: bool = True, hub: bool = True) -> ResolvedModel:
    """The model that a user means: a folder with config.json, a catalogued name, a bare size, or else a Hub id.

    Only a Hub id that is not in the catalog is looked up on the network. Without `folders` no folder of this machine is
    looked at, without `hub` no network is used. Raises UnknownModelError.
    """
    path_like = name.startswith(("/", "./", "../", "~"))
    if path_like and not folders:
        raise UnknownModelError("folders of this machine are not read here", hint="name a model of the catalog")
    folder = Path(name).expanduser() if folders else None
    if folder is not None and (path_like or (folder / CONFIG_NAME).is_file()):
        return ResolvedModel(read_model_folder(folder), "folder")
    if name.count("/") == 1 and _named_model(name) is None:
        if not hub:
            raise UnknownModelError(f"no model of the catalog is called {name!r}", hint="the Hub is not asked here")
        return ResolvedModel(read_hub_model(name), "hub")
    return ResolvedModel(find_model(name), "catalog", reference_shape(name))


@cache
def find_model(name: str) -> ModelProfile:
    """The profile of a catalogued model by id, part of the id after the slash, alias or bare size; case is ignored.

    Raises UnknownModelError with the nearest names.
    """
    reference = reference_shape(name)
    known = _named_model(reference.hf_id if reference else name)
    if known is not None:
        return known
    raise UnknownModelError(f"no model is called {name!r}{_nearest(name)}", hint=_HINT)


def reference_shape(name: str) -> ReferenceShape | None:
    """The reference shape of a bare size such as `7b` or `1.3B`; None if `name` is no bare size.

    A size that is not in the table takes the nearest one within 10 % of its parameters; farther ones raise
    UnknownModelError.
    """
    match = _BARE_SIZE.fullmatch(name.strip())
    if match is None:
        return None
    shapes = _reference_shapes()
    exact = shapes.get(name.strip().casefold())
    if exact is not None:
        return exact
    wanted = float(match["number"]) * _UNIT[match["unit"].casefold()]
    if not wanted:
        raise UnknownModelError(f"{name} is not the size of a model", hint="the sizes are " + ", ".join(shapes))
    nearest = min(shapes.values(), key=lambda shape: abs(_num_parameters(shape) / wanted - 1))
    if abs(_num_parameters(nearest) / wanted - 1) > REFERENCE_TOLERANCE:
        raise UnknownModelError(
            f"no reference shape is within {REFERENCE_TOLERANCE:.0%} of {name}; the nearest is {nearest.size} "
            f"({nearest.hf_id}, {_num_parameters(nearest):,} parameters)",
            hint="name a model, or one of the sizes " + ", ".join(shapes),
        )
    return nearest


@cache
def all_models() -> tuple[ModelProfile, ...]:
    """Every catalogued model, family by family."""
    return tuple(ModelProfile.model_validate(row) for path in _family_files() for row in _rows(path.read_text()))


def _named_model(name: str) -> ModelProfile | None:
    # Parsing all files takes longer than an answer may; only those that mention the name are parsed.
    wanted = name.strip().casefold()
    for path in _family_files():
        text = path.read_text()
        if wanted in text.casefold():
            for row in _rows(text):
                if wanted in _names(row):
                    return ModelProfile.model_validate(row)
    return None


def _family_files() -> list[Path]:
    return [path for path in sorted(MODELS_FOLDER.glob("*.toml")) if path != REFERENCE_SIZES_FILE]


def _rows(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tomllib.loads(text)["models"]
    return rows


def _names(row: dict[str, Any]) -> set[str]:
    full = {name.casefold() for name in (row["hf_id"], *row.get("aliases", ()))}
    return full | {name.rpartition("/")[2] for name in full}


def _nearest(name: str) -> str:
    names = sorted({known for path in _family_files() for row in _rows(path.read_text()) for known in _names(row)})
    close = get_close_matches(name.casefold(), names, n=3)
    return f"; near it are {', '.join(close)}" if close else ""


@cache
def _reference_shapes() -> dict[str, ReferenceShape]:
    table = tomllib.loads(REFERENCE_SIZES_FILE.read_text())
    return {size: ReferenceShape(size, row["model"], row["why"]) for size, row in table["sizes"].items()}


def _num_parameters(shape: ReferenceShape) -> int:
    return parameter_counts(architecture(find_model(shape.hf_id))).total
