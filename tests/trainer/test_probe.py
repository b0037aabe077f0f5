from types import SimpleNamespace

import pytest

from planner.run_config import DataKnobs, PreferenceKnobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture
def batch():
    """The longest batch of a run, as the collator of its trainer makes it."""
    from tests.trainer.objective_runs import make_trainer, run_config
    from trainer.probe import longest_examples

    def make(num_examples, row="sft", **knobs):
        config = run_config(row, "lora", **knobs)
        trainer = make_trainer(config)
        return trainer.data_collator(longest_examples(config, num_examples, trainer.model.config.is_encoder_decoder))

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


@pytest.mark.parametrize("row", ["dpo", "ipo"])
def test_a_pair_is_two_rows_that_count_but_for_one_token_of_the_prompt(batch, row):
    made = batch(2, row)
    assert made["input_ids"].shape == (4, 64)
    assert made["attention_mask"].sum(1).tolist() == [64, 63, 63, 62]
    assert made["completion_mask"].sum(1).tolist() == [63, 62, 62, 61]


def test_what_a_reference_answered_before_is_in_the_batch(batch):
    made = batch(1, "dpo", preference=PreferenceKnobs(precompute_ref_log_probs=True))
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(made)


def test_judged_answers_are_good_and_bad_and_have_their_mismatched_ones(batch):
    made = batch(2, "kto")
    assert made["input_ids"].shape == made["KL_input_ids"].shape == (2, 64)
    assert made["label"].tolist() == [True, False]


def test_both_answers_of_odds_ratios_have_the_full_length(batch):
    made = batch(2, "orpo")
    assert made["chosen_input_ids"].shape == (2, 64)
    assert made["input_ids"].numel() == 4 * 64


def test_scores_are_taken_of_whole_pairs(batch):
    assert batch(2, "reward")["input_ids"].shape == (4, 64)


def test_the_answer_of_an_encoder_decoder_is_as_long_as_it_may_be(batch):
    made = batch(2, "sft of an encoder-decoder", max_target_length=16)
    assert made["input_ids"].shape == (2, 64)
    assert made["labels"].shape == (2, 16)


@pytest.mark.parametrize(
    ("row", "passes"),
    [
        # Two micro-batches of the three, for the gradients that meet, and one evaluation; all in the first step.
        ("sft", [True, True, False]),
        # A pass of the reference follows each of the model.
        ("dpo", [True, False, True, False, False, False]),
        ("reward", [True, True, False]),
    ],
)
def test_the_longest_batch_leaves_no_trace(row, passes):
    import torch

    from tests.trainer.objective_runs import make_trainer, run_config
    from trainer.probe import LongestBatch

    data = run_config(row, "lora").data
    config = run_config(row, "lora", gradient_accumulation_steps=3, data=DataKnobs(path=data.path, eval_fraction=0.1))
    trainer = make_trainer(config)
    model = trainer.model
    seen = []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    model.train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    random_state = torch.get_rng_state()
    probe = LongestBatch(config, trainer)
    for _step in range(2):
        probe.on_step_end(SimpleNamespace(device=torch.device("cpu")), None, None, model=model)
    assert seen == passes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training
    assert not any(trainer._metrics.values())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
