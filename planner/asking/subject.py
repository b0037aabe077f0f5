"""What an estimate is of: the configuration of a run file, or the usual one of a model, and where it runs."""

import json
from pathlib import Path

from planner.asking.question import (
    FULL_ACCESS,
    Access,
    Card,
    card_or_cpu,
    find_card,
    names_run_file,
    pinned_knobs,
    request_for,
)
from planner.asking.wishes import Wishes
from planner.config.run_config import LoraKnobs, Method, RunConfig
from planner.config.settings import with_knobs
from planner.predict.prediction import OWN_TRAINER, Target, usual_config
from profiles.errors import ConfigError, UnsupportedError
from profiles.hub import download_config


def configuration(
    subject: str | RunConfig, gpu: str | None, wishes: Wishes, trainer: str = OWN_TRAINER, access: Access = FULL_ACCESS
) -> tuple[RunConfig, Target]:
    """The configuration that `subject` means, and where it runs: a run file, what one holds, or a model.

    Of an architecture that is not described there is only the folder of its config.json. Raises InputError for what
    cannot be read, and for wishes that contradict it.
    """
    written = _written(subject, wishes, access)
    if written is None:
        assert isinstance(subject, str)
        return _of_model(subject, gpu, wishes, trainer, access)
    card = find_card(gpu or written.gpu or "cpu")
    config = with_knobs(written, pinned_knobs(wishes))
    try:
        model = access.resolve(config.model).profile
        return config, Target(
            model, card.gpu, card.free_bytes, trainer, experience=access.experience(), cluster=card.cluster
        )
    except UnsupportedError as error:
        if access.tracing is None:
            raise
        return config, _undescribed(config.model, card, trainer, error)


def config_folder(name: str, why: UnsupportedError) -> Path:
    """The folder with the config.json of a model, from the Hub if need be. Raises `why` if there is none."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if "/" in name and not Path(name).exists():
        return download_config(name).parent
    raise why


def _written(subject: str | RunConfig, wishes: Wishes, access: Access) -> RunConfig | None:
    """What stands in the run file, if `subject` is one."""
    if isinstance(subject, str) and not names_run_file(subject):
        return None
    if wishes.method != "auto":
        raise ConfigError("--method is for a MODEL; a run file has its own", hint="use --set for what goes with it")
    if isinstance(subject, RunConfig):
        return subject
    if not access.files:
        raise ConfigError("files of this machine are not read here", hint="send what stands in the run file")
    from planner.config.run_file import read_run_file

    return read_run_file(Path(subject))


def _of_model(name: str, gpu: str | None, wishes: Wishes, trainer: str, access: Access) -> tuple[RunConfig, Target]:
    card = card_or_cpu(gpu)
    try:
        request = request_for(name, card, wishes, access)
    except UnsupportedError as error:
        if access.tracing is None:
            raise
        undescribed = _undescribed(name, card, trainer, error)
        usual = _usual(name, card, wishes, encodes=_encodes(undescribed.folder))
        return with_knobs(usual, pinned_knobs(wishes)), undescribed
    target = Target(
        request.model,
        request.gpu,
        request.free_bytes,
        trainer,
        experience=request.experience,
        cluster=request.cluster,
    )
    return usual_config(request), target


def _undescribed(name: str, card: Card, trainer: str, why: UnsupportedError) -> Target:
    return Target(None, card.gpu, card.free_bytes, trainer, config_folder(name, why), why.message)


def _encodes(folder: Path | None) -> bool:
    """Whether the config.json in `folder` says that an encoder reads the prompt."""
    if folder is None:
        return False
    try:
        return bool(json.loads((folder / "config.json").read_text("utf-8")).get("is_encoder_decoder"))
    except (OSError, ValueError, AttributeError):
        # The trace says what is wrong with the file.
        return False


def _usual(model: str, card: Card, wishes: Wishes, *, encodes: bool) -> RunConfig:
    """LoRA, or what was wished, in a 16-bit format that the card has."""
    method: Method = "lora" if wishes.method == "auto" else wishes.method
    old = card.gpu is not None and not card.gpu.supports_bf16
    dtype = "float32" if method == "full" and old else "float16" if old else "bfloat16"
    return RunConfig(
        model=model,
        gpu=card.gpu.name if card.gpu else None,
        method=method,
        quantization="nf4" if method == "qlora" else None,
        lora=None if method == "full" else LoraKnobs(),
        dtype=dtype,
        mixed_precision={"float32": "no", "float16": "fp16", "bfloat16": "bf16"}[dtype],
        **({"loss": "full"} if encodes else {}),
    )
