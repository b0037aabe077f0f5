"""What stands beside the weights of a merged model: configuration, tokenizer, chat template, model card."""

import json
import shutil
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from profiles.errors import InputError
from trainer.data.stop_tokens import stop_token_ids
from trainer.finish.base_checkpoint import BaseCheckpoint
from trainer.finish.model_card import CARD_FILE
from trainer.run_folder.finished_run import MODEL_FILE, FinishedRun


def write_companions(folder: Path, base: BaseCheckpoint, run: FinishedRun, card: str, unties: bool, dtype: str) -> None:
    """Complete `folder`, which has the weights of `dtype`, to a model that Transformers loads.

    `unties` says that input and output embeddings are no longer the same tensor. Raises InputError.
    """
    if not (folder / MODEL_FILE).exists():
        _write_config(folder, base, unties, dtype)
    if run.trust_remote_code:
        for module in base.folder.glob("*.py"):
            shutil.copy(module, folder)
    tokenizer = load_saved_tokenizer(run.folder, base.folder, run.trust_remote_code)
    tokenizer.save_pretrained(folder)
    generation = generation_config(base.folder, run.trust_remote_code)
    generation.eos_token_id = stop_token_ids(tokenizer, generation)
    generation.save_pretrained(folder)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def load_saved_tokenizer(own: Path, base: Path, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder `own`, which has the chat template of the run; in a bare adapter's place, the base's.

    Raises InputError if neither has one.
    """
    for folder in (own, base):
        if (folder / "tokenizer_config.json").exists():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    raise InputError(f"there is no tokenizer in {own} and none in {base}", hint="copy the tokenizer's files into one")


def generation_config(folder: Path, trust_remote_code: bool) -> GenerationConfig:
    """How the model in `folder` generates; without a file of its own, what its configuration says."""
    if (folder / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))


def _write_config(folder: Path, base: BaseCheckpoint, unties: bool, dtype: str) -> None:
    """The base's configuration, word for word but for what changed: its tensors keep their names, so it still fits."""
    config = base.config
    for name in ("dtype", "torch_dtype"):
        if name in config:
            config[name] = dtype
    if unties:
        config["tie_word_embeddings"] = False
    (folder / MODEL_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
