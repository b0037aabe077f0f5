import json

import pytest

from planner.config.run_config import DataKnobs
from profiles.errors import DataError

pytestmark = pytest.mark.slow

CHAT = {
    "messages": [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
        {"role": "assistant", "content": "Four."},
    ]
}
UNMARKED = """\
{%- for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor -%}
{%- if add_generation_prompt %}[assistant] {% endif %}"""
STRICT = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"


@pytest.fixture
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "model")


@pytest.fixture
def learned(tiny_config, data_file, tokenizer):
    """The text that counts in the loss of a row, by what the trainer makes of a data file."""
    import torch

    from trainer.data.examples import load_examples
    from trainer.model.build import empty_model, load_architecture, wrap_with_adapter
    from trainer.objectives.objective import make_trainer
    from trainer.run import quiet_libraries

    def text(row, **knobs):
        config = tiny_config(data=DataKnobs(path=str(data_file(json.dumps(row)))), **knobs)
        with quiet_libraries():
            model = wrap_with_adapter(empty_model(config, load_architecture(config)), config)
            trainer = make_trainer(config, model, tokenizer, load_examples(config.data, tokenizer, 0))
        batch = trainer.data_collator([trainer.train_dataset[0]])
        assert torch.equal(batch["labels"] == -100, batch["labels"] != batch["input_ids"])
        return tokenizer.decode(batch["labels"][batch["labels"] != -100])

    return text


def test_every_answer_of_a_conversation_and_its_end_are_learned_and_nothing_else(learned):
    assert learned(CHAT) == "Two.</s>Four.</s>"


def test_a_template_without_marks_leaves_the_last_answer_and_its_end(learned, tokenizer):
    tokenizer.chat_template = UNMARKED
    assert learned(CHAT) == "Four.</s>"


def test_the_completion_of_a_prompt_and_its_end_are_learned(learned):
    assert learned({"prompt": "One?", "completion": " Two."}) == " Two.</s>"


def test_all_of_a_text_and_its_end_are_learned(learned):
    assert learned({"text": "One. Two."}) == "One. Two.</s>"


def test_the_answer_of_an_alpaca_row_is_learned(learned):
    assert learned({"instruction": "Add one.", "input": "1", "output": "2"}) == "2</s>"


def test_packing_learns_the_same(learned):
    assert learned(CHAT, packing=True) == "Two.</s>Four.</s>"


def test_a_row_that_the_template_refuses_is_told_with_its_line(data_file, tokenizer):
    from trainer.data.examples import load_examples

    tokenizer.chat_template = STRICT
    bad = {"messages": [{"role": "system", "content": "a"}, *CHAT["messages"]]}
    path = data_file(json.dumps(CHAT) + "\n" + json.dumps(bad))
    with pytest.raises(DataError, match=r"data.jsonl, line 2: the model's chat template refuses it: no system"):
        load_examples(DataKnobs(path=str(path)), tokenizer, 0)


def test_a_bad_row_is_told_with_its_line(data_file, tokenizer):
    from trainer.data.examples import load_examples

    path = data_file('{"text": "a"}\n\n{"text": ""}\n')
    with pytest.raises(DataError, match=r"data.jsonl, line 3: text is empty"):
        load_examples(DataKnobs(path=str(path)), tokenizer, 0)


def test_text_among_conversations_is_told_with_its_line(data_file, tokenizer):
    from trainer.data.examples import load_examples

    turns = {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:2]}
    path = data_file(json.dumps(turns) + "\n" + json.dumps({"prompt": "a", "completion": "b"}))
    with pytest.raises(DataError, match=r"line 2: it is text in prompt, completion, but .* are turns in messages"):
        load_examples(DataKnobs(path=str(path)), tokenizer, 0)


def test_held_out_rows_are_the_same_for_the_same_seed_and_never_trained_on(data_file, tokenizer):
    from trainer.data.examples import load_examples

    path = data_file("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(10)))
    data = DataKnobs(path=str(path), eval_fraction=0.25)
    first, again, other = (load_examples(data, tokenizer, seed) for seed in (1, 1, 2))
    assert first.evaluation["text"] == again.evaluation["text"] != other.evaluation["text"]
    assert len(first.evaluation) == 2
    assert set(first.evaluation["text"]) | set(first.train["text"]) == {f"row {n}" for n in range(10)}
    assert not set(first.evaluation["text"]) & set(first.train["text"])


def test_one_row_cannot_be_split(data_file, tokenizer):
    from trainer.data.examples import load_examples

    data = DataKnobs(path=str(data_file('{"text": "a"}')), eval_fraction=0.5)
    with pytest.raises(DataError, match="has only one row"):
        load_examples(data, tokenizer, 0)


def test_a_model_without_a_template_gets_one_and_the_user_is_told(data_file, tokenizer):
    from trainer.data.examples import load_examples

    examples = load_examples(DataKnobs(path=str(data_file(json.dumps(CHAT)))), tokenizer, 0)
    assert "the default one is used" in examples.remarks[0]
    assert tokenizer.apply_chat_template(CHAT["messages"][:1], tokenize=False, add_generation_prompt=True) == (
        "<s><|user|>\nOne?\n<|assistant|>\n"
    )
