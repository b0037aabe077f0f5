import io
import re
import shutil

import pytest
from rich.console import Console

from planner.config.run_config import DataKnobs, LoraKnobs, PreferenceKnobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture
def batch():
    """The longest batch of a run, as the collator of its trainer makes it."""
    from tests.trainer.objective_runs import make_trainer, run_config
    from trainer.loop.probe import longest_examples

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
        # Two micro-batches of the three, for the gradients that meet, and one evaluation; all before the first step.
        ("sft", [True, True, False]),
        # A pass of the reference follows each of the model.
        ("dpo", [True, False, True, False, False, False]),
        ("reward", [True, True, False]),
    ],
)
def test_a_step_and_an_evaluation_are_tried_before_the_first_step(row, passes):
    import torch
    from transformers import TrainerCallback

    from tests.trainer.objective_runs import make_trainer, run_config
    from trainer.loop.meters import CpuMemory
    from trainer.loop.probe import Probe
    from trainer.run import quiet_libraries

    class Steps(TrainerCallback):
        def on_step_begin(self, *_, **__):
            seen.append("step")

    data = run_config(row, "lora").data
    config = run_config(
        row,
        "lora",
        gradient_accumulation_steps=3,
        data=DataKnobs(path=data.path, eval_fraction=0.1),
        max_steps=1,
        save_steps=9,
        output_dir=data.path + ".run",
    )
    trainer = make_trainer(config)
    seen, said, memory = [], io.StringIO(), CpuMemory()
    trainer.model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    for callback in (memory, Probe(config, trainer, memory, Console(file=said)), Steps()):
        trainer.add_callback(callback)
    with quiet_libraries():
        trainer.train()
    assert seen[: seen.index("step")] == passes
    assert {"forward", "backward", "step"} < set(memory.phases)
    assert re.fullmatch(r"probe: the longest batch fits, [\d.]+ MiB at most, [\d.]+ m?s\n", said.getvalue())


SAME = {
    "gradients that add up": ("sft", "full", {"gradient_accumulation_steps": 2, "weight_decay": 0.1}),
    "dropout and an evaluation": ("sft", "lora", {"lora": LoraKnobs(r=8, lora_dropout=0.1), "eval_fraction": 0.1}),
    "8-bit states": ("sft", "qlora nf4", {"optim": "adamw_8bit"}),
    "factored states": ("sft", "full", {"optim": "adafactor"}),
    "a reference": ("dpo", "full", {}),
    "judged answers": ("kto", "lora", {}),
    "scores": ("reward", "full", {}),
    "an encoder": ("sft of an encoder-decoder", "lora", {}),
}


@pytest.mark.parametrize("case", SAME)
def test_a_run_with_a_probe_is_the_same_bit_for_bit(case, tmp_path):
    from tests.trainer.objective_runs import run_config, train

    row, method, knobs = SAME[case]
    data = DataKnobs(path=run_config(row, method).data.path, eval_fraction=knobs.pop("eval_fraction", 0.0))
    found = {}
    for probe in (True, False):
        output_dir = tmp_path / str(probe)
        config = run_config(
            row, method, **knobs, data=data, probe=probe, max_steps=2, max_length=96, output_dir=str(output_dir)
        )
        outcome = train(config)
        (weights,) = (output_dir / "final").glob("*.safetensors")
        found[probe] = outcome.losses, weights.read_bytes()
    assert found[True] == found[False]


def test_what_is_measured_is_the_longest_step_that_there_can_be(tmp_path):
    from tests.trainer.objective_runs import run_config, train

    knobs = {"max_steps": 1, "max_length": 128, "gradient_accumulation_steps": 2}
    with_probe = train(run_config("sft", "full", output_dir=str(tmp_path / "with"), **knobs))
    without = train(run_config("sft", "full", output_dir=str(tmp_path / "without"), probe=False, **knobs))
    assert with_probe.measured_bytes == pytest.approx(with_probe.predicted_bytes, rel=0.02)
    # The rows have 45 tokens at most, and the optimizer has no states before its first step.
    assert without.measured_bytes < 0.9 * with_probe.measured_bytes


def test_a_resumed_run_is_probed_and_ends_as_one_that_never_stopped(tmp_path):
    from tests.trainer.objective_runs import run_config, train

    knobs = {"max_steps": 4, "save_steps": 2, "save_total_limit": 9, "output_dir": str(tmp_path)}
    whole = train(run_config("sft", "full", **knobs))
    for later in ("checkpoint-4", "final"):
        shutil.rmtree(tmp_path / later)
    assert train(run_config("sft", "full", **knobs), resume=True).losses == whole.losses


def test_a_user_is_told_where_a_probe_that_was_asked_for_is_left_out():
    from types import SimpleNamespace

    from planner.config.run_config import RunConfig
    from trainer.run import probes

    said = io.StringIO()
    trainer = SimpleNamespace(is_deepspeed_enabled=True)
    run = RunConfig(model="m", lora=LoraKnobs())
    assert probes(run, trainer, None, Console(file=said)) == []
    assert said.getvalue().startswith("note: no probe is made with DeepSpeed")
    silent = run.model_copy(update={"probe": False})
    assert probes(silent, trainer, None, Console(file=said)) == []
    assert said.getvalue().count("note") == 1
    trainer.is_deepspeed_enabled = False
    assert len(probes(run, trainer, None, Console(file=said))) == 1
