import pytest

from planner.config.run_config import DataKnobs, RunConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(tiny_config):
    """TRL's settings for a run whose rows are texts."""
    from datasets import Dataset

    from trainer.data.examples import Examples
    from trainer.objectives.supervised import supervised_arguments

    rows = Dataset.from_list([{"text": "a"}])

    def make(evaluation: bool = False, **knobs: object):
        examples = Examples(rows, rows if evaluation else None, False, False, ())
        return supervised_arguments(tiny_config(**knobs), examples)

    return make


# Names that the two do not share, or that fitune does by itself.
NOT_TRL = {
    "early_stopping_patience",
    "num_gpus",
    "num_nodes",
    "padding_free",
    "parallel",
    "peft",
    "probe",
    "samples",
    "save_total_limit",
    "version",
    "model",
    "trust_remote_code",
    "gpu",
    "method",
    "quantization",
    "double_quant",
    "dtype",
    "mixed_precision",
    "lora",
    "data",
    "gradient_checkpointing",
    "checkpoint_every_n_layers",
    "checkpoint_offload",
    "attn_implementation",
    "loss",
    "objective",
    "preference",
    "load_best_model_at_end",
    "max_target_length",
}


@pytest.mark.parametrize("knob", sorted(set(RunConfig.model_fields) - NOT_TRL))
def test_each_knob_that_trl_has_too_reaches_it(arguments, knob):
    values = {
        "max_length": 77,
        "packing": True,
        "per_device_train_batch_size": 7,
        "per_device_eval_batch_size": 7,
        "gradient_accumulation_steps": 7,
        "optim": "adafactor",
        "learning_rate": 0.123,
        "lr_scheduler_type": "linear",
        "warmup_steps": 7,
        "weight_decay": 0.7,
        "max_grad_norm": 0.7,
        "num_train_epochs": 7.0,
        "max_steps": 7,
        "seed": 7,
        "output_dir": "elsewhere",
        "logging_steps": 7,
        "save_steps": 7,
        "eval_steps": 7,
        "report_to": ["trackio"],
    }
    assert getattr(arguments(evaluation=True, **{knob: values[knob]}), knob) == values[knob]


def test_checkpointing_reaches_transformers_under_its_old_and_its_new_name(arguments):
    from trainer.objectives.arguments import CHECKPOINTING

    made = arguments(checkpoint_every_n_layers=3)
    assert getattr(made, CHECKPOINTING) is True
    assert getattr(made, f"{CHECKPOINTING}_kwargs") == {"use_reentrant": False, "every_n_layers": 3, "offload": False}
    assert getattr(arguments(gradient_checkpointing=False), CHECKPOINTING) is False


def test_nothing_leaves_the_machine_and_no_batch_size_is_guessed(arguments):
    made = arguments()
    assert made.report_to == []
    assert not made.push_to_hub
    assert not made.auto_find_batch_size


def test_transformers_deletes_no_checkpoint(arguments):
    # It would delete an old one before the new one is sealed.
    assert arguments(save_total_limit=2).save_total_limit is None


def test_the_best_checkpoint_is_that_of_the_lowest_evaluation_loss(arguments, tiny):
    data = DataKnobs(path=str(tiny / "data.jsonl"), eval_fraction=0.1)
    made = arguments(evaluation=True, data=data, eval_steps=5, save_steps=10, load_best_model_at_end=True)
    assert made.load_best_model_at_end
    assert (made.metric_for_best_model, made.greater_is_better) == ("eval_loss", False)


@pytest.mark.parametrize(
    ("evaluation", "eval_steps", "strategy"), [(False, 5, "no"), (True, None, "no"), (True, 5, "steps")]
)
def test_evaluation_in_between_needs_data_and_steps(arguments, evaluation, eval_steps, strategy):
    assert arguments(evaluation=evaluation, eval_steps=eval_steps).eval_strategy == strategy


@pytest.mark.parametrize(("precision", "flags"), [("no", (False, False)), ("bf16", (True, False))])
def test_the_precision_is_never_trls_default(arguments, precision, flags):
    made = arguments(mixed_precision=precision)
    assert (made.bf16, made.fp16) == flags


@pytest.mark.parametrize(("loss", "is_plain"), [("full", True), ("fused", False)])
def test_the_full_loss_builds_all_logits_and_the_fused_one_none(tiny_config, tiny, loss, is_plain):
    import torch
    from transformers import AutoTokenizer

    from trainer.data.examples import load_examples
    from trainer.model.build import empty_model, load_architecture, wrap_with_adapter
    from trainer.objectives.objective import make_trainer
    from trainer.run import quiet_libraries

    config = tiny_config(loss=loss)
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    with quiet_libraries():
        model = wrap_with_adapter(empty_model(config, load_architecture(config)), config)
        trainer = make_trainer(config, model, tokenizer, load_examples(config.data, tokenizer, 0))
        called = []
        trainer.model.get_output_embeddings().register_forward_hook(lambda *_: called.append("head"))
        batch = trainer.data_collator([trainer.train_dataset[0]])
        found = trainer.compute_loss(trainer.model, batch)
    assert bool(called) == is_plain
    assert isinstance(found, torch.Tensor)
