"""Reward modelling, by TRL's RewardTrainer: a model that scores answers instead of writing them."""

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from planner.config.run_config import RunConfig
from trainer.data.examples import Examples
from trainer.objectives.arguments import common_settings


def reward_arguments(config: RunConfig, examples: Examples) -> RewardConfig:
    """TRL's settings of the run. Raises ConfigError for what Transformers does not know."""
    assert config.preference is not None
    return RewardConfig(
        **common_settings(config, examples),
        max_length=config.max_length,
        center_rewards_coefficient=config.preference.center_rewards_coefficient,
        disable_dropout=True,
    )


def reward_trainer(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> RewardTrainer:
    """A trainer of the score; TRL leaves out pairs of which an answer is longer than max_length."""
    return RewardTrainer(
        model=model,
        args=reward_arguments(config, examples),
        train_dataset=examples.train,
        eval_dataset=examples.evaluation,
        processing_class=tokenizer,
    )
