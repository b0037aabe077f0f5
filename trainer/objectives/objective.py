"""The trainer of a run's objective, ready to train, and what became of the rows."""

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer

from planner.config.run_config import Objective, RunConfig
from profiles.errors import DataError
from trainer.data.examples import Examples
from trainer.data.row_order import LongestFirst, row_lengths
from trainer.model.hardware import cast_trainable_to_float32
from trainer.model.rank_schedule import ScheduleRanks
from trainer.objectives.preference import preference_trainer
from trainer.objectives.reward import reward_trainer
from trainer.objectives.seq2seq import seq2seq_trainer
from trainer.objectives.supervised import supervised_trainer

KINDS = {
    "chosen": "preference pairs",
    "label": "judged answers",
    "text": "answers",
    "messages": "answers",
    "completion": "answers",
}
"""What rows are, by the first of these columns that they have."""

LEARNS_FROM: dict[Objective, tuple[str, ...]] = {
    "sft": ("answers",),
    "dpo": ("preference pairs",),
    "ipo": ("preference pairs",),
    "orpo": ("preference pairs",),
    "kto": ("judged answers", "preference pairs"),
    "reward": ("preference pairs",),
}
"""What an objective can learn from. A pair is two judged answers."""


def make_trainer(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Trainer:
    """A trainer that is ready to train `model`, with the objective, the loss and the dtypes of the run.

    Raises DataError for rows that the objective cannot learn from, and if none is left after those without a token to
    learn are dropped.
    """
    _check_rows(config, examples, model.config.is_encoder_decoder)
    trainer = _trainer_of_objective(config, model, tokenizer, examples)
    trainer.remove_callback(PrinterCallback)
    if config.method != "full":
        cast_trainable_to_float32(trainer.model)
    if config.method == "peft":
        trainer.add_callback(ScheduleRanks())
    for name, dataset in (("train", trainer.train_dataset), ("evaluation", trainer.eval_dataset)):
        if dataset is not None and len(dataset) == 0:
            raise DataError(
                f"no {name} row has a token to learn within max_length {config.max_length}",
                hint="raise max_length, or shorten the prompts",
            )
    _shuffle(config, trainer)
    return trainer


def _shuffle(config: RunConfig, trainer: Trainer) -> None:
    """Let the longest row come first, but for kto: TRL mixed the answers of neighbours, which must stay neighbours."""
    if config.objective != "kto":
        order = LongestFirst(row_lengths(config, trainer.train_dataset), config.seed)
        trainer._get_train_sampler = lambda *_: order


def _trainer_of_objective(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Trainer:
    if model.config.is_encoder_decoder:
        return seq2seq_trainer(config, model, tokenizer, examples)
    if config.objective == "sft":
        return supervised_trainer(config, model, tokenizer, examples)
    if config.objective == "reward":
        return reward_trainer(config, model, tokenizer, examples)
    return preference_trainer(config, model, tokenizer, examples)


def _check_rows(config: RunConfig, examples: Examples, encodes: bool) -> None:
    """Refuse rows that the objective cannot learn from. Raises DataError."""
    columns = set(examples.train.column_names)
    kind = next(kind for column, kind in KINDS.items() if column in columns)
    learnable = LEARNS_FROM[config.objective]
    if kind not in learnable:
        fitting = [objective for objective, kinds in LEARNS_FROM.items() if kind in kinds]
        raise DataError(
            f"the rows are {kind}, but objective {config.objective} learns from {' or '.join(learnable)}",
            hint=f"use objective {' or '.join(fitting)}, or set data.format if the rows are meant otherwise",
        )
    if encodes and "text" in columns:
        raise DataError(
            f"the rows are texts, but {config.model} has an encoder, which reads a prompt, and a decoder, which learns "
            "the answer",
            hint="give rows with a prompt and a completion",
        )


def dropped_rows(config: RunConfig, examples: Examples, trainer: Trainer) -> int:
    """Rows that TRL left out because max_length leaves nothing of them to learn; 0 with packing, which keeps them.

    A reward model scores whole answers, so there each pair with one that is longer is left out.
    """
    if config.packing:
        return 0
    given = len(examples.train)
    if config.objective == "kto" and "chosen" in examples.train.column_names:
        # TRL makes two judged answers of a pair.
        given *= 2
    return given - len(trainer.train_dataset)


def why_dropped(config: RunConfig) -> str:
    """The reason for which rows are left out."""
    if config.objective == "reward":
        return f"an answer of theirs is longer than max_length {config.max_length}"
    return f"max_length {config.max_length} cuts off all that counts in the loss"


def rows_at_limit(config: RunConfig, trainer: Trainer) -> int:
    """Rows that fill max_length and so may have lost their end; of packed rows their documents."""
    if config.objective == "reward":
        # Pairs with an answer that is too long are left out whole.
        return 0
    if config.packing:
        lengths = [length for row in trainer.train_dataset["seq_lengths"] for length in row]
    else:
        lengths = row_lengths(config, trainer.train_dataset)
    return sum(length >= config.max_length for length in lengths)
