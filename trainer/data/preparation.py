"""From converted rows to the columns that TRL trains on, for the tokenizer of one model."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from trainer.data.chat import chat_loss, check_template, give_template, split_last_answer
from trainer.data.formats import BadRow, conversations


class Preparation:
    """Checks converted rows of one file and, where only the last answer can be told apart, splits them.

    What it decides about the whole file, it decides by the first row: `assistant_only_loss`, and `remarks` for the
    user. A tokenizer without a chat template gets the default one if that row is a conversation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.assistant_only_loss = False
        self.remarks: tuple[str, ...] = ()
        self._tokenizer = tokenizer
        self._kind: dict[str, type] | None = None
        self._split = False

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """The converted row `example` as TRL takes it. Raises BadRow for one that cannot be trained on."""
        kind = {column: type(value) for column, value in example.items()}
        if self._kind is None:
            self._decide(example)
            self._kind = kind
        if kind != self._kind:
            raise BadRow(f"it is {_words(kind)}, but the rows before it are {_words(self._kind)}")
        for conversation in conversations(example):
            check_template(self._tokenizer, conversation)
        return split_last_answer(example) if self._split else example

    def _decide(self, example: dict[str, Any]) -> None:
        if not conversations(example):
            return
        remarks = []
        if give_template(self._tokenizer):
            remarks.append("the model has no chat template; the default one is used, and saved with the tokenizer")
        if "messages" in example:
            self.assistant_only_loss = chat_loss(self._tokenizer) == "every answer"
            self._split = not self.assistant_only_loss
        if self._split:
            remarks.append("the chat template does not mark answers; only the last answer of a row counts in the loss")
        self.remarks = tuple(remarks)


def _words(kind: dict[str, type]) -> str:
    turns = "turns" if list in kind.values() else "text"
    return f"{turns} in {', '.join(kind)}"
