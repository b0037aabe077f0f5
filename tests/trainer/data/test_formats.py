import pytest

from profiles.errors import DataError
from trainer.data.formats import FORMATS, BadRow, find_format

TURN = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}

CONVERSATION = {"messages": [TURN, ANSWER]}

EXAMPLES = {
    "text": ({"text": "a"}, {"text": "a"}),
    "prompt-completion": ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b"}),
    "messages": ({"messages": [TURN, ANSWER]}, CONVERSATION),
    "alpaca": ({"instruction": "Hi", "input": "", "output": "Hello"}, CONVERSATION),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        CONVERSATION,
    ),
    "preference": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ),
    "kto": (
        {"prompt": "a", "completion": "b", "label": "False"},
        {"prompt": "a", "completion": "b", "label": False},
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_is_found_by_its_columns_and_converted(name):
    row, expected = EXAMPLES[name]
    assert find_format("auto", row) is FORMATS[name]
    assert find_format(name, row).convert(row) == expected


def test_every_format_has_an_example():
    assert set(EXAMPLES) == set(FORMATS)


def test_other_columns_do_not_matter():
    assert find_format("auto", {"id": 1, "messages": [], "source": "x"}) is FORMATS["messages"]


def test_an_alpaca_input_follows_the_instruction():
    row = {"instruction": "Translate.", "input": "Hi", "output": "Hallo", "system": "Be brief."}
    messages = FORMATS["alpaca"].convert(row)["messages"]
    assert [message["content"] for message in messages] == ["Be brief.", "Translate.\n\nHi", "Hallo"]


def test_a_prompt_of_messages_is_a_conversation():
    row = {"prompt": [TURN], "completion": [ANSWER]}
    assert FORMATS["prompt-completion"].convert(row) == CONVERSATION


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [TURN], "chosen": [ANSWER], "rejected": [OTHER]},
        {"chosen": [TURN, ANSWER], "rejected": [TURN, OTHER]},
        {"prompt": "Hi", "chosen": [TURN, ANSWER], "rejected": [TURN, OTHER]},
    ],
    ids=["apart", "whole conversations", "both"],
)
def test_a_preference_is_the_common_turns_and_the_two_ends(row):
    assert FORMATS["preference"].convert(row) == {"prompt": [TURN], "chosen": [ANSWER], "rejected": [OTHER]}


def test_a_judged_conversation_keeps_its_turns():
    row = {"prompt": [TURN], "completion": [ANSWER], "label": True}
    assert FORMATS["kto"].convert(row) == row


@pytest.mark.parametrize(
    ("theirs", "ours"), [("human", "user"), ("GPT", "assistant"), ("bot", "assistant"), ("function", "tool")]
)
def test_names_of_roles_are_made_the_same(theirs, ours):
    turns = [{"from": theirs, "value": "a"}, {"from": "gpt", "value": "b"}]
    assert FORMATS["sharegpt"].convert({"conversations": turns})["messages"][0]["role"] == ours


def test_unknown_columns_list_the_formats():
    with pytest.raises(DataError, match="question, answer belong to no known format") as refusal:
        find_format("auto", {"question": "a", "answer": "b"})
    assert "alpaca: instruction, output" in refusal.value.hint


def test_a_wrong_declared_format_names_the_missing_column():
    with pytest.raises(DataError, match=r"data.format is alpaca, but there is no column instruction; .* text"):
        find_format("alpaca", {"text": "a"})


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("text", {"text": " "}, "text is empty"),
        ("text", {"text": 3}, "text must be text, but is 3"),
        ("text", {"text": None}, "text must be text, but is None"),
        ("text", {}, "there is no column text"),
        ("prompt-completion", {"prompt": "a", "completion": ""}, "completion is empty"),
        ("messages", {"messages": []}, "messages must be a list of at least one turn"),
        ("messages", {"messages": "a" * 99}, r"messages must be a list of at least one turn, but is 'a+\.\.\."),
        ("messages", {"messages": ["a"]}, r"messages\[0\] must be an object with role and content"),
        ("messages", {"messages": [TURN]}, "no turn of the conversation is the assistant's"),
        (
            "messages",
            {"messages": [{"role": "boss", "content": "a"}]},
            r"messages\[0\].role is 'boss', but must be one",
        ),
        ("messages", {"messages": [{"role": "user", "content": None}]}, r"messages\[0\].content must be text"),
        ("sharegpt", {"conversations": [{"from": "x", "value": "a"}]}, r"conversations\[0\].from is 'x'"),
        ("text", {"text": "half a pair: \ud83d"}, "text must be text, but is 'half a pair"),
        ("messages", {"messages": [{"role": "user", "content": "\ud83d"}]}, r"messages\[0\].content must be text"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        ("preference", {"chosen": "b", "rejected": "c"}, "there is no column prompt"),
        ("preference", {"chosen": [TURN, ANSWER], "rejected": [TURN]}, "the same up to the end of one"),
        ("preference", {"chosen": [ANSWER], "rejected": [OTHER]}, "they answer no common prompt"),
        ("kto", {"prompt": "a", "completion": "b", "label": None}, "label is None, but must be true for a good answer"),
        ("alpaca", {"instruction": "a", "input": 3, "output": "b"}, "input must be text, but is 3"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(name, row, sentence):
    with pytest.raises(BadRow, match=sentence):
        FORMATS[name].convert(row)
