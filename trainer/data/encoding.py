"""What a model reads of an example: token ids, and which of them count in the loss, as TRL's trainers make them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from trainer.data.chat import marked_template
from trainer.data.formats import Message

ANSWERS = ("completion", "chosen", "rejected")

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for some bytes of a character without the rest."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a row, and for each whether it counts in the loss."""

    ids: list[int]
    learned: list[bool]

    @property
    def answer_start(self) -> int:
        """Position of the first token that counts; the length of the row if none does."""
        return self.learned.index(True) if True in self.learned else len(self.ids)


class Encoder:
    """Encodes prepared examples with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._stop_tokens = {tokenizer.eos_token_id, *tokenizer.get_added_vocab().values()}

    def __call__(self, example: dict[str, Any]) -> list[Encoded]:
        """The sequences of `example`: one, or two for a preference pair, the chosen one first."""
        if "text" in example:
            ids = self._ids(self._ended(example["text"]))
            return [Encoded(ids, [True] * len(ids))]
        if "messages" in example:
            return [self._conversation(example["messages"])]
        prompt = self._ids(example["prompt"], add_generation_prompt=True)
        answers = [self._ids(self._ended(example["prompt"] + example[name])) for name in ANSWERS if name in example]
        # Tokens may merge across the end of the prompt: the answer begins where they differ from those of the prompt.
        start = min(common_prefix_length(prompt, ids) for ids in answers)
        return [Encoded(ids, [False] * start + [True] * (len(ids) - start)) for ids in answers]

    def stop_token(self, encoded: Encoded) -> int | None:
        """The token on which what is learned ends, if it is one that can stop generation; else None."""
        for number, learned in zip(reversed(encoded.ids), reversed(encoded.learned), strict=True):
            if learned and number in self._stop_tokens:
                return number
            if learned and self._tokenizer.decode([number]).strip():
                return None
        return None

    @cached_property
    def _template(self) -> str | None:
        return marked_template(self._tokenizer)

    def _conversation(self, messages: list[Message]) -> Encoded:
        """A whole conversation, which stays whole only where its template marks the answers."""
        made = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, return_dict=True, return_assistant_tokens_mask=True
        )
        return Encoded(made["input_ids"], [bool(mark) for mark in made["assistant_masks"]])

    def _ids(self, text: str | list[Message], add_generation_prompt: bool = False) -> list[int]:
        made = (
            self._tokenizer(text)
            if isinstance(text, str)
            else self._tokenizer.apply_chat_template(
                text, return_dict=True, add_generation_prompt=add_generation_prompt
            )
        )
        ids: list[int] = made["input_ids"]
        return ids

    def _ended(self, text: str | list[Message]) -> str | list[Message]:
        """`text` with the end-of-sequence token; turns end as the template says."""
        eos: str = self._tokenizer.eos_token
        return text if isinstance(text, list) or text.endswith(eos) else text + eos


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Iterator[str]:
    """The text of each token, which together are the text of `ids`.

    A token that ends within a character has none; the one that completes the character has it.
    """
    begin = shown = 0
    for end in range(1, len(ids) + 1):
        # Decoded together with the tokens before it: some decoders drop a space at the beginning.
        before, text = (tokenizer.decode(ids[begin:to], clean_up_tokenization_spaces=False) for to in (shown, end))
        if text.endswith(UNFINISHED) and end < len(ids):
            yield ""
        else:
            yield text.removeprefix(before)
            begin, shown = shown, end
