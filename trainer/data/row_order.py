"""The order in which a run sees its rows: shuffled anew in each epoch, but the longest row first."""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from pyarrow import compute
from torch.utils.data import Sampler

from planner.config.run_config import Objective, RunConfig

ROW_COLUMNS: dict[Objective, tuple[tuple[str, ...], ...]] = {
    "sft": (("input_ids",),),
    "dpo": (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids")),
    "ipo": (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids")),
    "orpo": (("chosen_input_ids",), ("rejected_input_ids",)),
    "kto": (("prompt_ids", "completion_ids"),),
    "reward": (("chosen_ids",), ("rejected_ids",)),
}
"""Columns of tokenized data that make a row of the model together, for each row that an example makes."""


def row_lengths(config: RunConfig, rows: Dataset) -> list[int]:
    """Tokens of the longest row that each of the tokenized `rows` makes; of an encoder-decoder those it reads."""
    table = rows.with_format("arrow")[:]
    lengths = [
        sum(compute.list_value_length(table[column]).to_numpy() for column in columns)
        for columns in ROW_COLUMNS[config.objective]
    ]
    longest: list[int] = lengths[0].tolist() if len(lengths) == 1 else lengths[0].clip(min=lengths[1]).tolist()
    return longest


class LongestFirst(Sampler[int]):  # type: ignore[misc]
    """Indices of rows, shuffled by seed and epoch, with the longest row moved to the front.

    So the largest batch of real rows is the first one: what it takes, no later batch exceeds. The order does not depend
    on how large a micro-batch is, nor on what was drawn before, so a resumed run finds it again.
    """

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        self._num_rows = len(lengths)
        self._longest = max(range(len(lengths)), key=lengths.__getitem__)
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return self._num_rows

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before each epoch, from 0 on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        dice = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(self._num_rows, generator=dice).tolist()
        order.remove(self._longest)
        return iter([self._longest, *order])
