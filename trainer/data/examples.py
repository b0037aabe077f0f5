"""The examples of a run as data sets that TRL trains on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from planner.config.run_config import DataKnobs
from profiles.errors import DataError
from trainer.data.files import Row, read_rows
from trainer.data.formats import BadRow, find_format
from trainer.data.preparation import Preparation


@dataclass(frozen=True, slots=True)
class Examples:
    """The rows to train and to evaluate on, which of their tokens count in the loss, and what the user should know."""

    train: Dataset
    evaluation: Dataset | None
    completion_only_loss: bool
    assistant_only_loss: bool
    remarks: tuple[str, ...]


def load_examples(data: DataKnobs, tokenizer: PreTrainedTokenizerBase, seed: int) -> Examples:
    """Read, check, convert and split the data of a run.

    A tokenizer without a chat template gets the default one if the rows are conversations. Raises DataError with file
    and line for the first row that cannot be trained on.
    """
    path = Path(data.path)
    rows = read_rows(path)
    convert = find_format(data.format, rows[0].values).convert
    prepare = Preparation(tokenizer)
    examples = [_prepared(path, row, lambda values: prepare(convert(values))) for row in rows]
    train, evaluation = _split(Dataset.from_list(examples), data, seed)
    return Examples(
        train=train,
        evaluation=evaluation,
        completion_only_loss="completion" in examples[0],
        assistant_only_loss=prepare.assistant_only_loss,
        remarks=prepare.remarks,
    )


def _prepared(path: Path, row: Row, prepare: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        return prepare(row.values)
    except BadRow as error:
        raise DataError(
            f"{path}, {row.place}: {error}", hint=f"`fitune data {path}` lists every row that cannot be trained on"
        ) from error


def _split(dataset: Dataset, data: DataKnobs, seed: int) -> tuple[Dataset, Dataset | None]:
    """The rows to train on and those held out."""
    if data.eval_fraction == 0:
        return dataset, None
    if len(dataset) < 2:
        raise DataError(f"data.eval_fraction is {data.eval_fraction}, but {data.path} has only one row")
    held_out = min(max(1, round(data.eval_fraction * len(dataset))), len(dataset) - 1)
    parts = dataset.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]
