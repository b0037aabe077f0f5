"""How a conversation becomes text, and which of its tokens are learned."""

from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from planner.config.chat_template import DEFAULT_TEMPLATE
from trainer.data.formats import BadRow, Message

ChatLoss = Literal["every answer", "last answer"]


def give_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Give `tokenizer` the default template if it has none of its own; true if it had none."""
    if tokenizer.chat_template is not None:
        return False
    tokenizer.chat_template = DEFAULT_TEMPLATE
    return True


def chat_loss(tokenizer: PreTrainedTokenizerBase) -> ChatLoss:
    """Which answers of a conversation can be told apart from the rest, token by token.

    A template has to mark them, and the token that ends an answer has to be inside the marks, or the model never
    learns to stop. TRL has marked versions of the widespread templates. For any other one, the last answer is what
    follows when the conversation before it is rendered alone.
    """
    try:
        marked = marked_template(tokenizer)
    except ValueError:
        return "last answer"
    if not tokenizer.is_fast or not is_chat_template_stop_token_trained(tokenizer, chat_template=marked):
        return "last answer"
    return "every answer"


def marked_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """TRL's version of the tokenizer's template, in which answers are marked; None if its own marks them.

    Raises ValueError for a template that is not among those that TRL knows.
    """
    if has_generation_markers(tokenizer.chat_template):
        return None
    template: str = get_training_chat_template(tokenizer)
    return template


def check_template(tokenizer: PreTrainedTokenizerBase, conversation: list[Message]) -> None:
    """Raise BadRow if the model's template refuses `conversation`, such as two answers on end."""
    try:
        tokenizer.apply_chat_template(conversation, tokenize=False)
    except TemplateError as error:
        raise BadRow(f"the model's chat template refuses it: {error}") from error


def split_last_answer(example: dict[str, Any]) -> dict[str, Any]:
    """The `messages` of the example up to the last answer as `prompt`, and that answer as `completion`."""
    messages: list[Message] = example["messages"]
    last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
    if last == 0:
        raise BadRow("the conversation begins with its only answer, so there is no prompt to answer")
    return {"prompt": messages[:last], "completion": [messages[last]]}
