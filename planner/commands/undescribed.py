"""A question about an architecture that nobody described: its `config.json` and the knobs go to the trace."""

import sys
from pathlib import Path

from planner.commands.knobs import with_knobs
from planner.commands.question import Card, Wishes, card_or_cpu, find_card, names_run_file, pinned_knobs
from planner.prediction import Target
from planner.run_config import LoraKnobs, Method, RunConfig
from planner.run_file import read_run_file
from profiles.errors import UnsupportedError
from profiles.hub import download_config


def undescribed_question(
    subject: str, gpu: str | None, wishes: Wishes, trainer: str, why: UnsupportedError
) -> tuple[RunConfig, Target]:
    """The configuration to trace, and where; what the closed form said against it goes to stderr.

    Raises `why` where there is no folder with a config.json, and ConfigError for knobs that contradict each other.
    """
    written = read_run_file(Path(subject)) if names_run_file(subject) else None
    folder = config_folder(written.model if written else subject, why)
    card = find_card(gpu or written.gpu or "cpu") if written else card_or_cpu(gpu)
    config = with_knobs(written or _usual(subject, card, wishes), pinned_knobs(wishes))
    sys.stderr.write(f"note: {why.message}; tracing the step instead\n")
    return config, Target(None, card.gpu, card.free_bytes, trainer, folder)


def config_folder(name: str, why: UnsupportedError) -> Path:
    """The folder with the config.json of a model, from the Hub if need be. Raises `why` if there is none."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    if "/" in name and not Path(name).exists():
        return download_config(name).parent
    raise why


def _usual(model: str, card: Card, wishes: Wishes) -> RunConfig:
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
    )
