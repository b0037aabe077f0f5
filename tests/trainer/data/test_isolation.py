import json
import math
from itertools import pairwise

import pytest

from planner.config.run_config import DataKnobs
from planner.memory.estimate import estimate
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError
from profiles.model_catalog import resolve_model

pytestmark = pytest.mark.slow

JOINED = [{"packing": True}, {"padding_free": True}]


@pytest.fixture
def trainer(tiny_config, tiny, data_file):
    """Makes the trainer of a run on a few texts, with the weights of a model type."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

    from trainer.data.examples import load_examples
    from trainer.model.build import load_architecture, load_model, wrap_with_adapter
    from trainer.objectives.objective import make_trainer
    from trainer.run import quiet_libraries

    def make(model_type="llama", **knobs):
        import torch

        rows = "".join(json.dumps({"text": "one two " * n}) + "\n" for n in range(1, 7))
        config = tiny_config(data=DataKnobs(path=str(data_file(rows))), **knobs)
        architecture = load_architecture(config)
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
            if model_type == "llama":
                model = load_model(config, architecture, torch.device("cpu"))
            else:
                shape = {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
                opt = OPTConfig(vocab_size=architecture.vocab_size, word_embed_proj_dim=64, pad_token_id=2, **shape)
                model = AutoModelForCausalLM.from_config(opt, attn_implementation=config.attn_implementation)
            examples = load_examples(config.data, tokenizer, 0)
            return make_trainer(config, wrap_with_adapter(model, config), tokenizer, examples)

    return make


@pytest.mark.parametrize("knobs", JOINED, ids=lambda knobs: next(iter(knobs)))
@pytest.mark.parametrize("code", ["sdpa", "eager"])
def test_documents_of_a_joined_batch_give_what_each_gives_alone(knobs, code, trainer):
    import torch

    made = trainer(attn_implementation=code, **knobs)
    batch = made.data_collator(list(made.train_dataset))
    labels = batch.pop("labels")
    ends = batch["cu_seq_lens_q"].tolist()
    assert len(ends) > 2
    made.model.eval()
    with torch.no_grad():
        joined = made.model(**batch).logits[0]
        for start, end in pairwise(ends):
            alone = made.model(input_ids=batch["input_ids"][:, start:end]).logits[0]
            assert torch.allclose(joined[start:end], alone, atol=1e-5)
    # No document is asked for the first token of the next.
    assert (labels[0, ends[:-1]] == -100).all()


@pytest.mark.parametrize("knobs", JOINED, ids=lambda knobs: next(iter(knobs)))
def test_a_model_whose_documents_see_each_other_is_refused(knobs, trainer):
    with pytest.raises(ConfigError, match=rf"{next(iter(knobs))} is true, but with attn_implementation sdpa"):
        trainer("opt", **knobs)


def test_padded_rows_are_not_asked_for(trainer):
    assert "attention_mask" in next(iter(trainer("opt").get_train_dataloader()))


def test_a_batch_without_padding_learns_what_a_padded_one_learns(trainer):
    import torch

    losses = []
    for knobs in ({}, {"padding_free": True}):
        made = trainer(per_device_train_batch_size=6, seed=3, **knobs)
        made.model.eval()
        batch = made.data_collator(list(made.train_dataset))
        with torch.no_grad():
            losses.append(made.compute_loss(made.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_are_cut_to_max_length_before_they_are_joined(trainer):
    made = trainer(padding_free=True, max_length=5, per_device_train_batch_size=6)
    assert max(map(len, made.train_dataset["input_ids"])) == 5
    assert made.data_collator(list(made.train_dataset))["max_length_q"] == 5


@pytest.mark.parametrize(
    "knobs",
    [
        {"packing": True, "per_device_train_batch_size": 1},
        {"packing": True, "per_device_train_batch_size": 3, "attn_implementation": "eager"},
        {"padding_free": True, "per_device_train_batch_size": 3, "loss": "full"},
    ],
    ids=["one packed row", "packed rows, eager", "without padding"],
)
def test_the_memory_of_a_joined_batch_is_predicted(knobs, tiny, tiny_config, train):
    config = tiny_config(max_length=128, **knobs)
    measured = train(config).measured.allocated_bytes
    step = resolve_step(config, resolve_model(str(tiny / "model")).profile, None)
    predicted = estimate(resolve_model(str(tiny / "model")).profile, step, None).allocated_bytes
    assert predicted == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("knobs", JOINED, ids=lambda knobs: next(iter(knobs)))
def test_joined_rows_train(knobs, tiny_config, train):
    from trainer.tiny_model import VOCAB_SIZE

    record = train(tiny_config(max_steps=6, **knobs))
    assert record.result.steps == 6
    assert record.result.loss < math.log(VOCAB_SIZE)
