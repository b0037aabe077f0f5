"""What `fitune data` shows is what TRL's trainers really train on."""

import json

import pytest

from planner.config.run_config import DataKnobs

pytestmark = pytest.mark.slow

QUESTION, ANSWER = {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two, and \N{SNOWMAN}."}
LONG = {"role": "user", "content": "Three " * 40}
OTHER = {"role": "assistant", "content": "Four."}

UNMARKED = """\
{%- for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor -%}
{%- if add_generation_prompt %}[assistant] {% endif %}"""

LATE_STOP = """\
{%- for m in messages %}{{ m.role }}: {% if m.role == 'assistant' -%}
{% generation %}{{ m.content }}{% endgeneration %}</s>{% else %}{{ m.content }}{% endif %}
{% endfor %}"""

ROWS = {
    "text": [{"text": "One. Two."}, {"text": "It ends</s>"}, {"text": "long " * 200}],
    "prompt-completion": [{"prompt": "One?", "completion": " Two."}, {"prompt": "Is it on", "completion": "going?"}],
    "messages": [
        {"messages": [QUESTION, ANSWER]},
        {"messages": [{"role": "system", "content": "Count."}, QUESTION, ANSWER, QUESTION, OTHER]},
        {"messages": [QUESTION, ANSWER, LONG, OTHER]},
    ],
    "alpaca": [{"instruction": "Add one.", "input": "1", "output": "2"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Two."}]}],
}
PAIRS = {
    "text": [{"prompt": "One?", "chosen": " Two.", "rejected": " Three, four."}],
    "turns": [{"prompt": [QUESTION], "chosen": [ANSWER], "rejected": [OTHER]}],
}


@pytest.fixture
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "model")


@pytest.fixture
def trainer(tiny_config, data_file, tokenizer):
    """Makes the trainer of a run on these rows."""
    from trainer.data.examples import load_examples
    from trainer.model.build import empty_model, load_architecture, wrap_with_adapter
    from trainer.objectives.objective import make_trainer
    from trainer.run import quiet_libraries

    def make(rows, **knobs):
        path = data_file("".join(json.dumps(row) + "\n" for row in rows))
        config = tiny_config(data=DataKnobs(path=str(path)), max_length=128, **knobs)
        with quiet_libraries():
            model = wrap_with_adapter(empty_model(config, load_architecture(config)), config)
            return make_trainer(config, model, tokenizer, load_examples(config.data, tokenizer, 0))

    return make


def encoded(rows, tokenizer):
    """The sequences of the rows, as `fitune data` counts and shows them."""
    from trainer.data.formats import find_format
    from trainer.data.token_counts import TokenCounts

    counts, convert = TokenCounts(tokenizer, None), find_format("auto", rows[0]).convert
    return [counts.add(convert(row))[0] for row in rows]


def labels_of(one):
    return [number if learned else -100 for number, learned in zip(one.ids, one.learned, strict=True)]


@pytest.mark.parametrize("template", [None, UNMARKED], ids=["marked", "unmarked"])
@pytest.mark.parametrize("name", ROWS)
def test_tokens_and_loss_mask_are_those_of_the_batch_that_is_trained_on(name, template, trainer, tokenizer):
    tokenizer.chat_template = template
    made = trainer(ROWS[name])
    ours = [one for (one,) in encoded(ROWS[name], tokenizer) if one.answer_start < 128]
    batch = made.data_collator(list(made.train_dataset))
    assert len(ours) == len(batch["input_ids"])
    for one, ids, labels, mask in zip(ours, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        assert one.ids[:128] == ids[mask.bool()].tolist()
        assert labels_of(one)[:128] == labels[mask.bool()].tolist()


@pytest.mark.parametrize("name", PAIRS)
def test_both_answers_of_a_pair_are_those_that_are_compared(name, trainer, tokenizer):
    made = trainer(PAIRS[name], objective="dpo").train_dataset[0]
    ((chosen, rejected),) = encoded(PAIRS[name], tokenizer)
    for one, answer in ((chosen, made["chosen_ids"]), (rejected, made["rejected_ids"])):
        assert one.ids == made["prompt_ids"] + answer
        assert one.answer_start == len(made["prompt_ids"])


def test_a_judged_answer_is_the_one_that_is_judged(trainer, tokenizer):
    rows = [{"prompt": "One?", "completion": f" {n}.", "label": n % 2 == 0} for n in range(2)]
    made = trainer(rows, objective="kto").train_dataset[0]
    (one,) = encoded(rows, tokenizer)[0]
    assert one.ids == made["prompt_ids"] + made["completion_ids"]
    assert one.answer_start == len(made["prompt_ids"])


def test_rows_without_a_token_to_learn_are_dropped_as_counted(trainer, tokenizer):
    rows = [*ROWS["messages"], {"messages": [LONG, LONG, ANSWER]}]
    tokenizer.chat_template = UNMARKED
    dropped = sum(one.answer_start >= 128 for (one,) in encoded(rows, tokenizer))
    assert len(trainer(rows).train_dataset) == len(rows) - dropped
    assert dropped == 2


@pytest.mark.parametrize("text", ["One. Two.", "\N{SNOWMAN} \N{HUGGING FACE}!", "a\n\n  b\t</s>"])
def test_the_texts_of_tokens_are_together_the_text(text, tokenizer):
    from trainer.data.encoding import token_texts

    ids = tokenizer(text)["input_ids"]
    texts = list(token_texts(tokenizer, ids))
    assert "".join(texts) == text
    assert len(texts) == len(ids)


def test_a_token_that_ends_within_a_character_has_no_text(tokenizer):
    from trainer.data.encoding import token_texts

    ids = tokenizer("\N{SNOWMAN}")["input_ids"]
    assert list(token_texts(tokenizer, ids)) == ["", "", "\N{SNOWMAN}"]


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        (None, ("</s>",)),
        (UNMARKED, ("</s>",)),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", ()),
        (LATE_STOP, ("</s>",)),
    ],
    ids=["default", "unmarked", "no stop token", "stop token outside the marks"],
)
def test_it_is_known_whether_the_model_learns_to_stop(template, stops, tokenizer):
    from trainer.data.token_counts import TokenCounts

    tokenizer.chat_template = template
    counts = TokenCounts(tokenizer, None)
    _, odd = counts.add({"messages": [QUESTION, ANSWER, QUESTION, OTHER]})
    assert counts.stop_tokens == stops
    assert ("stop token not learned" in odd) == (not stops)
