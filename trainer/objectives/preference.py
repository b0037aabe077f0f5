"""Learning from preferences: DPO, IPO and KTO by TRL's trainers, ORPO by its experimental one."""

import contextlib
import copy
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.trainer import dpo_trainer, kto_trainer

from planner.config.run_config import RunConfig
from trainer.data.examples import Examples
from trainer.objectives.arguments import common_settings

REFERENCE_ADAPTER = "ref"
"""TRL's name of the frozen copy of the adapter, in DPOTrainer and KTOTrainer."""

BASE_IS_REFERENCE = (True, False, "gaussian", "orthogonal")
"""Ways to begin a LoRA adapter that leave the base as it was; the others move a part of it into the adapter."""


# While it asks the reference, TRL switches checkpoints off, against a warning that ours do not give, and then on again
# for every layer and on the card: `checkpoint_every_n_layers` and `checkpoint_offload` would hold for one batch only.
for _module in (dpo_trainer, kto_trainer):
    _module.disable_gradient_checkpointing = lambda model, knobs=None: contextlib.nullcontext()


def preference_trainer(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Trainer:
    """A trainer of dpo, ipo, kto or orpo; the reference answers before it returns if it is to be precomputed."""
    parts = {
        "model": model,
        "train_dataset": examples.train,
        "eval_dataset": examples.evaluation,
        "processing_class": tokenizer,
    }
    match config.objective:
        case "orpo":
            return _odds_ratio_trainer(config, examples, parts)
        case "kto":
            trainer = KTOTrainer(
                ref_model=_reference_copy(config, model), args=kto_arguments(config, examples), **parts
            )
        case _:
            trainer = DPOTrainer(
                ref_model=_reference_copy(config, model), args=dpo_arguments(config, examples), **parts
            )
    if config.lora is not None and config.lora.init_lora_weights in BASE_IS_REFERENCE:
        # Without the copy that TRL makes of an adapter, it asks the base below.
        trainer.model.delete_adapter(REFERENCE_ADAPTER)
    return trainer


def dpo_arguments(config: RunConfig, examples: Examples) -> DPOConfig:
    """TRL's settings of dpo and ipo. Raises ConfigError for what Transformers does not know."""
    return DPOConfig(
        **common_settings(config, examples),
        **_reference_settings(config),
        truncation_mode="keep_start",
        loss_type=["ipo" if config.objective == "ipo" else "sigmoid"],
        label_smoothing=0.0,
        use_weighting=False,
    )


def kto_arguments(config: RunConfig, examples: Examples) -> KTOConfig:
    """TRL's settings of kto. Raises ConfigError for what Transformers does not know."""
    assert config.preference is not None
    return KTOConfig(
        **common_settings(config, examples),
        **_reference_settings(config),
        loss_type="kto",
        desirable_weight=config.preference.desirable_weight,
        undesirable_weight=config.preference.undesirable_weight,
        # TRL mixes the answers of neighbouring rows beforehand, so the rows must stay neighbours.
        train_sampling_strategy="sequential",
    )


def _reference_settings(config: RunConfig) -> dict[str, Any]:
    """What dpo, ipo and kto have in common."""
    assert config.preference is not None
    return {
        "max_length": config.max_length,
        "beta": config.preference.beta,
        "precompute_ref_log_probs": config.preference.precompute_ref_log_probs,
        "precompute_ref_batch_size": config.per_device_train_batch_size,
        "sync_ref_model": False,
        "disable_dropout": True,
    }


def _reference_copy(config: RunConfig, model: PreTrainedModel | PeftModel) -> PreTrainedModel | None:
    """A frozen copy of a model that learns in all its weights.

    None with an adapter, which is switched off for the reference, and where the reference is asked before training.
    """
    if config.method != "full" or config.asks_reference_before:
        return None
    reference: PreTrainedModel = copy.deepcopy(model)
    reference.requires_grad_(False)
    return reference.eval()


def _odds_ratio_trainer(config: RunConfig, examples: Examples, parts: dict[str, Any]) -> Trainer:
    assert config.preference is not None
    with warnings.catch_warnings():
        # That ORPO may move within TRL is for whoever updates TRL to see, in the tests.
        warnings.filterwarnings("ignore", message=".*experimental.*")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer
        from trl.experimental.utils import DPODataCollatorWithPadding
    arguments = ORPOConfig(
        **common_settings(config, examples),
        beta=config.preference.beta,
        max_length=config.max_length,
        disable_dropout=True,
        remove_unused_columns=False,
    )
    pad = DPODataCollatorWithPadding(pad_token_id=parts["processing_class"].pad_token_id, is_encoder_decoder=False)
    return ORPOTrainer(args=arguments, data_collator=partial(_with_all_tokens, pad), **parts)


def _with_all_tokens(
    pad: Callable[[list[dict[str, Any]]], dict[str, Any]], examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """The batch that `pad` makes, with all its tokens under the name by which Transformers counts them."""
    batch = pad(examples)
    answers = (batch["chosen_input_ids"], batch["rejected_input_ids"])
    longest = max(ids.shape[1] for ids in answers)
    return batch | {"input_ids": answers[0].new_zeros(2 * len(examples), longest)}
