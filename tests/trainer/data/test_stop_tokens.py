import pytest

pytestmark = pytest.mark.slow

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer(tiny):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny / "model")


def stop_tokens(tokenizer, eos_token_id=None):
    from transformers import GenerationConfig

    from trainer.data.stop_tokens import stop_token_ids

    return tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer, GenerationConfig(eos_token_id=eos_token_id)))


def test_without_a_template_the_end_of_sequence_stops(tokenizer):
    assert stop_tokens(tokenizer) == ["</s>"]


def test_what_the_template_puts_behind_an_answer_stops_too(tokenizer):
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = CHATML
    assert stop_tokens(tokenizer) == ["</s>", "<|im_end|>"]


def test_the_tokens_of_the_model_are_kept(tokenizer):
    assert stop_tokens(tokenizer, [0, 1]) == ["<s>", "</s>"]


def test_ordinary_text_behind_an_answer_is_no_stop(tokenizer):
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} and so on {% endfor %}"
    assert stop_tokens(tokenizer) == ["</s>"]


def test_a_template_that_refuses_a_conversation_has_none(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert stop_tokens(tokenizer) == ["</s>"]
