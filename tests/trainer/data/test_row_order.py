from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_each_epoch_has_every_row_once_and_the_longest_first(lengths, seed, epoch):
    from trainer.data.row_order import LongestFirst

    order = LongestFirst(lengths, seed)
    order.set_epoch(epoch)
    seen = list(order)
    assert Counter(seen) == Counter(range(len(lengths)))
    assert lengths[seen[0]] == max(lengths)
    assert list(order) == seen


def test_epochs_and_seeds_have_orders_of_their_own():
    from trainer.data.row_order import LongestFirst

    orders = []
    for seed, epoch in ((1, 0), (1, 1), (5, 0)):
        order = LongestFirst(range(50), seed)
        order.set_epoch(epoch)
        orders.append(tuple(order))
    assert len(set(orders)) == 3


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ("sft", {"input_ids": [[1] * 3, [1] * 5]}, [3, 5]),
        ("dpo", {"prompt_ids": [[1], [1]], "chosen_ids": [[1], [1] * 9], "rejected_ids": [[1] * 4, [1]]}, [5, 10]),
        ("reward", {"chosen_ids": [[1], [1] * 9], "rejected_ids": [[1] * 4, [1]]}, [4, 9]),
    ],
)
def test_the_length_of_an_example_is_that_of_its_longest_row(row, columns, expected):
    from datasets import Dataset

    from tests.trainer.objective_runs import run_config
    from trainer.data.row_order import row_lengths

    assert row_lengths(run_config(row, "full"), Dataset.from_dict(columns)) == expected


@pytest.mark.parametrize("row", ["sft", "dpo", "ipo", "orpo", "reward", "sft of an encoder-decoder"])
def test_the_first_batch_of_a_run_is_the_widest(row):
    from tests.trainer.objective_runs import make_trainer, run_config

    widths = [batch["input_ids"].shape[1] for batch in make_trainer(run_config(row, "lora")).get_train_dataloader()]
    assert widths[0] == max(widths)
    assert len(set(widths)) > 1


def test_neighbours_stay_neighbours_where_answers_were_mixed():
    from torch.utils.data import SequentialSampler

    from tests.trainer.objective_runs import make_trainer, run_config

    assert isinstance(make_trainer(run_config("kto", "lora"))._get_train_sampler(), SequentialSampler)


def test_a_run_that_goes_on_in_a_later_epoch_finds_its_place(tiny_config, train, tmp_path):
    import shutil

    from trainer.run_folder.checkpoints import read_state

    def losses(folder):
        return [entry["loss"] for entry in read_state(folder / "checkpoint-9")["log_history"] if "loss" in entry]

    # 48 rows are 6 steps of 8, so step 9 is in the middle of the second epoch.
    config = tiny_config(
        per_device_train_batch_size=8, max_steps=9, save_steps=8, save_total_limit=9, gradient_checkpointing=False
    )
    train(config)
    folder = tmp_path / "run"
    expected = losses(folder)
    for later in ("checkpoint-9", "final"):
        shutil.rmtree(folder / later)
    train(config, resume=True)
    assert losses(folder) == expected
