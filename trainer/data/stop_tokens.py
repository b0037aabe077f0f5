"""The tokens at which an answer ends."""

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

ANSWER = "the answer"


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[int]:
    """Ids of the tokens that end an answer, sorted.

    They are those of the model's own settings, the tokenizer's end of sequence, and what the chat template puts behind
    an answer: a base model's settings do not know the token with which its chat tuning learned to stop.
    """
    own = generation.eos_token_id
    ids = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, _after_an_answer(tokenizer)}
    return sorted(token_id for token_id in ids if token_id is not None)


def _after_an_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that follows an answer in the chat template; None if there is none."""
    if tokenizer.chat_template is None:
        return None
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": ANSWER}]
    try:
        rendered: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        return None
    behind = rendered.rpartition(ANSWER)[2].lstrip()
    ids: list[int] = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.added_tokens_decoder else None
