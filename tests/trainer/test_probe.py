from types import SimpleNamespace

import pytest

from planner.run_config import DataKnobs

pytestmark = pytest.mark.slow


@pytest.fixture
def batch(tiny_config):
    """The longest batch of a run, as TRL's collator makes it."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from trainer.probe import longest_batch

    def make(num_rows, **knobs):
        config = tiny_config(per_device_train_batch_size=num_rows, **knobs)
        return longest_batch(config, DataCollatorForLanguageModeling(2, padding_free=config.packing), num_rows)

    return make


def test_one_row_has_the_full_length_and_needs_no_mask(batch):
    made = batch(1)
    assert made["input_ids"].shape == (1, 64)
    assert made["attention_mask"].all()
    assert (made["labels"] != -100).all()


def test_several_rows_need_a_mask_as_rows_of_real_data_do(batch):
    made = batch(3)
    assert made["input_ids"].shape == (3, 64)
    assert made["attention_mask"].sum(1).tolist() == [64, 63, 63]


def test_packed_rows_are_one_long_row(batch):
    made = batch(3, packing=True)
    assert made["input_ids"].shape == (1, 192)
    assert "attention_mask" not in made
    assert made["max_length_q"] == 64


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_longest_batch_leaves_no_trace(tiny_config, tiny):
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from trainer.build import empty_model, load_architecture, wrap_with_adapter
    from trainer.probe import LongestBatch

    data = DataKnobs(path=str(tiny / "data.jsonl"), eval_fraction=0.1)
    config = tiny_config(loss="full", gradient_accumulation_steps=3, data=data)
    model = wrap_with_adapter(empty_model(config, load_architecture(config)), config)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    model.train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    random_state = torch.get_rng_state()
    probe = LongestBatch(config, DataCollatorForLanguageModeling(2))
    arguments = SimpleNamespace(device=torch.device("cpu"))
    for _step in range(2):
        probe.on_step_end(arguments, None, None, model=model)
    # Two micro-batches of the three, for the gradients that meet, and one evaluation; all in the first step.
    assert passes == [True, True, False]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
