from collections import defaultdict
from pathlib import Path

import pytest

from planner.config.run_config import DataKnobs, LoraKnobs, PreferenceKnobs
from profiles.errors import ConfigError, DataError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture
def made():
    """Makes a trainer of a row of the table, with some knobs changed."""
    from tests.trainer.objective_runs import make_trainer, run_config

    return lambda row, method="lora", **knobs: make_trainer(run_config(row, method, **knobs))


@pytest.mark.parametrize("row", ["dpo", "kto"])
def test_the_base_below_a_new_adapter_is_the_reference(made, row):
    trainer = made(row)
    assert trainer.ref_model is None
    assert list(trainer.model.peft_config) == ["default"]


def test_an_adapter_that_took_a_part_of_the_base_is_kept_as_a_copy(made):
    trainer = made("dpo", lora=LoraKnobs(r=8, init_lora_weights="pissa"))
    assert set(trainer.model.peft_config) == {"default", "ref"}
    frozen = [weight for name, weight in trainer.model.named_parameters() if ".ref." in name]
    assert frozen
    assert not any(weight.requires_grad for weight in frozen)


@pytest.mark.parametrize("row", ["dpo", "ipo", "kto"])
def test_a_model_that_learns_as_a_whole_has_a_frozen_copy_as_its_reference(made, row):
    trainer = made(row, "full")
    assert trainer.ref_model is not None
    assert not any(weight.requires_grad for weight in trainer.ref_model.parameters())


@pytest.mark.parametrize("row", ["dpo", "kto"])
def test_asking_the_reference_leaves_checkpoints_as_the_run_file_has_them(made, row):
    # TRL switched them on again for every layer and on the card.
    trainer = made(row, checkpoint_every_n_layers=2, max_steps=2)
    seen = defaultdict(list)

    def look(layer, *_):
        seen[layer].append((layer.gradient_checkpointing, layer._gradient_checkpointing_func))

    first, second = layers = trainer.model.get_base_model().model.layers[:2]
    for layer in layers:
        layer.register_forward_pre_hook(look)
    trainer.train()
    assert len(seen[first]) >= 4
    assert {on for on, _ in seen[first]} == {True}
    assert {on for on, _ in seen[second]} == {False}
    assert len({function for _, function in seen[first]}) == 1


def test_a_reference_that_was_asked_before_takes_no_memory(made):
    trainer = made("dpo", "full", preference=PreferenceKnobs(precompute_ref_log_probs=True))
    assert trainer.ref_model is None
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(trainer.train_dataset.column_names)


@pytest.mark.parametrize("row", ["dpo", "kto", "orpo", "reward", "sft of an encoder-decoder"])
def test_what_learns_on_a_quantized_base_is_float32(made, row):
    import torch

    trainer = made(row, "qlora nf4")
    learning = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert learning == {torch.float32}


def test_a_reference_asked_before_gives_the_losses_of_one_asked_in_each_step(tmp_path):
    from tests.trainer.objective_runs import run_config, train

    losses = {}
    for before in (False, True):
        knobs = {"max_steps": 3, "output_dir": str(tmp_path / str(before))}
        config = run_config("dpo", "lora", preference=PreferenceKnobs(precompute_ref_log_probs=before), **knobs)
        losses[before] = train(config).losses
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_a_resumed_run_asks_the_model_that_it_began_with(tmp_path):
    from tests.trainer.objective_runs import run_config, train

    knobs = {"max_steps": 4, "save_steps": 2, "output_dir": str(tmp_path / "run")}
    config = run_config("dpo", "full", **knobs)
    whole = train(config).losses
    later = Path(config.output_dir) / "checkpoint-4"
    later.joinpath("trainer_state.json").unlink()
    assert train(config, resume=True).losses == whole


def test_each_options_of_a_preference_reaches_trl(made):
    dpo = made("ipo", preference=PreferenceKnobs(beta=0.3)).args
    assert (dpo.beta, dpo.loss_type, dpo.max_length) == (0.3, ["ipo"], 64)
    kto = made("kto", preference=PreferenceKnobs(desirable_weight=2.0, undesirable_weight=3.0)).args
    assert (kto.desirable_weight, kto.undesirable_weight) == (2.0, 3.0)
    assert made("orpo", preference=PreferenceKnobs(beta=0.2)).args.beta == 0.2
    reward = made("reward", preference=PreferenceKnobs(center_rewards_coefficient=0.01)).args
    assert reward.center_rewards_coefficient == 0.01


@pytest.mark.parametrize(
    ("row", "data", "sentence"),
    [
        ("sft", "pairs", "the rows are preference pairs, but objective sft learns from answers"),
        ("sft", "judged", "the rows are judged answers, but objective sft learns from answers"),
        ("dpo", "answers", "the rows are answers, but objective dpo learns from preference pairs"),
        ("kto", "answers", "the rows are answers, but objective kto learns from judged answers or preference pairs"),
    ],
)
def test_rows_that_the_objective_cannot_learn_from_are_refused(made, row, data, sentence):
    from tests.trainer.objective_runs import materials

    with pytest.raises(DataError, match=sentence):
        made(row, data=DataKnobs(path=str(materials() / f"{data}.jsonl")))


def test_pairs_are_two_judged_answers_each(made):
    from tests.trainer.objective_runs import materials

    trainer = made("kto", data=DataKnobs(path=str(materials() / "pairs.jsonl")))
    assert len(trainer.train_dataset) == 2 * 32
    assert sorted(set(trainer.train_dataset["label"])) == [False, True]


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"objective": "dpo", "loss": "fused"}, "objective is dpo, but .* has an encoder"),
        ({"loss": "fused"}, "loss is fused, but .* has an encoder"),
        ({"packing": True}, "packing joins rows of one kind, but .* has an encoder"),
    ],
)
def test_what_an_encoder_decoder_cannot_do_is_refused(made, knobs, sentence):
    with pytest.raises(ConfigError, match=sentence):
        made("sft of an encoder-decoder", **knobs)


def test_an_answer_of_an_encoder_decoder_ends_unless_it_is_cut(made):
    row = "sft of an encoder-decoder"
    trainer = made(row)
    end = trainer.processing_class.eos_token_id
    assert all(labels[-1] == end for labels in trainer.train_dataset["labels"])
    cut = made(row, max_target_length=2)
    assert all(len(labels) == 2 for labels in cut.train_dataset["labels"])


def test_the_last_answer_of_a_conversation_is_what_an_encoder_decoder_learns():
    from trainer.objectives.seq2seq import prompt_and_answer

    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert prompt_and_answer({"messages": messages}) == ("a\nb\nc", "d")
    assert prompt_and_answer({"prompt": messages[:3], "completion": messages[3:]}) == ("a\nb\nc", "d")
    assert prompt_and_answer({"prompt": "a", "completion": "d"}) == ("a", "d")
