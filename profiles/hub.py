"""Models that are not in the catalog: a folder with `config.json`, or a Hub id of which only that file is fetched."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profiles.build_architecture import architecture
from profiles.errors import InputError, UnknownModelError, UnsupportedError
from profiles.hub_config import profile_from_config
from profiles.model import ModelProfile
from profiles.parameter_counts import parameter_counts

CONFIG_NAME = "config.json"


def read_model_folder(folder: Path) -> ModelProfile:
    """The profile of the model in `folder`, from its `config.json`.

    Raises UnknownModelError if that file is missing, InputError if it is broken.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise UnknownModelError(
            f"{folder} has no {CONFIG_NAME}", hint="name a Hub id, or a folder that save_pretrained wrote"
        )
    config = _parsed(path)
    if "vision_config" in config:
        raise UnsupportedError(f"{path} has a vision part, whose size only the Hub's weight files tell")
    return profile_from_config(config, str(folder), str(path))


def read_hub_model(hf_id: str) -> ModelProfile:
    """The profile of a model on the Hub, from its `config.json` and the headers of its weight files.

    Raises UnknownModelError if the Hub has no such model, asks for a license, or cannot be reached.
    """
    config = _parsed(download_config(hf_id))
    profile = profile_from_config(config, hf_id, f"huggingface.co/{hf_id}: {CONFIG_NAME}")
    return _with_published_count(profile, stored_parameters(hf_id), "vision_config" in config)


def download_config(hf_id: str) -> Path:
    """Path of the model's `config.json` in the local Hub cache, fetched if it is not there."""
    # huggingface_hub takes a third of a second to import; catalogued models never need it.
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(hf_id, CONFIG_NAME)
    except HFValidationError as error:
        raise UnknownModelError(f"{hf_id!r} is not the form of a Hub id", hint="write owner/name") from error
    if isinstance(cached, str):
        return Path(cached)
    _check_reachable(hf_id)
    return Path(hf_hub_download(hf_id, CONFIG_NAME))


def stored_parameters(hf_id: str) -> int | None:
    """Numbers stored in the safetensors files of a Hub model, read from their headers; None if they cannot be read."""
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        _check_reachable(hf_id)
        metadata = get_safetensors_metadata(hf_id)
    except (OSError, UnknownModelError, NotASafetensorsRepoError, SafetensorsParsingError):
        return None
    return sum(metadata.parameter_count.values())


def _check_reachable(hf_id: str) -> None:
    # Downloads retry for half a minute without a network; the question for a file's size fails at once.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    # HTTPError is the base class of whichever HTTP library is in use; it is imported there, not exported.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        EntryNotFoundError,
        GatedRepoError,
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        get_hf_file_metadata(hf_hub_url(hf_id, CONFIG_NAME))
    except GatedRepoError as error:
        raise UnknownModelError(
            f"{hf_id} asks to accept a license before its {CONFIG_NAME} can be read",
            hint=f"accept it on https://huggingface.co/{hf_id}, then `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownModelError(f"the Hub has no model {hf_id}, or it is private", hint="`fitune models`") from error
    except EntryNotFoundError as error:
        raise UnknownModelError(
            f"{hf_id} has no {CONFIG_NAME}, so it is no Transformers model", hint="`fitune models`"
        ) from error
    except (OSError, HTTPError) as error:
        raise UnknownModelError(
            f"{hf_id} is not in the catalog, and the Hub cannot be reached ({error})",
            hint="go online, or give a folder with config.json",
        ) from error


def _with_published_count(profile: ModelProfile, stored: int | None, multimodal: bool) -> ModelProfile:
    counted = parameter_counts(architecture(profile)).total
    if multimodal:
        if stored is None or stored < counted:
            raise UnsupportedError(
                f"{profile.hf_id} has a vision part, and its weight files do not tell how large it is"
            )
        return profile.model_copy(update={"num_other_parameters": stored - counted})
    if stored is None:
        return profile
    if stored == counted:
        source = f"huggingface.co/{profile.hf_id}: safetensors headers"
        return profile.model_copy(update={"num_parameters_published": stored, "num_parameters_source": source})
    note = f"The weight files hold {stored:,} numbers, the architecture {counted:,}."
    return profile.model_copy(update={"notes": f"{profile.notes} {note}" if profile.notes else note})


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a {type(config).__name__}, not an object of settings")
    return config
