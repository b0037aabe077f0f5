"""The rows of a data set as one model reads them, counted."""

from collections import Counter
from typing import Any

from transformers import PreTrainedTokenizerBase

from planner.data.report import Oddity, Piece
from trainer.data.encoding import Encoded, Encoder, token_texts
from trainer.data.preparation import Preparation

PREVIEW_TOKENS = 2048
"""Tokens of a row that are shown at most."""


class TokenCounts:
    """Counts tokens of converted rows, and tells what is odd about them.

    `lengths` and `answer_starts` count rows by their tokens and by the position of the first token that counts in the
    loss; a preference pair is as long as its longer answer. `stop_tokens` are those on which learned answers end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.lengths: Counter[int] = Counter()
        self.answer_starts: Counter[int] = Counter()
        self._stop_ids: Counter[int] = Counter()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._prepare = Preparation(tokenizer)
        self._encoder = Encoder(tokenizer)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the user should know about the model's chat template."""
        return self._prepare.remarks

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """The tokens on which answers end, the most frequent first."""
        return tuple(self._tokenizer.decode([number]) for number, _ in self._stop_ids.most_common())

    @property
    def learns_every_answer(self) -> bool:
        """Whether all answers of a conversation count in the loss, not only the last."""
        return self._prepare.assistant_only_loss

    def add(self, example: dict[str, Any]) -> tuple[list[Encoded], dict[Oddity, str]]:
        """Count a converted row; its sequences, and what is odd about them.

        Raises BadRow for one that the model's chat template refuses.
        """
        sequences = self._encoder(self._prepare(example))
        start = max(encoded.answer_start for encoded in sequences)
        self.lengths[max(len(encoded.ids) for encoded in sequences)] += 1
        self.answer_starts[start] += 1
        odd: dict[Oddity, str] = {}
        if not all(any(encoded.learned) for encoded in sequences):
            odd["nothing is learned"] = "no token counts in the loss"
        elif self._max_length is not None and start >= self._max_length:
            odd["nothing is learned"] = f"the answer begins after {start} tokens, and max_length is {self._max_length}"
        else:
            stops = [self._encoder.stop_token(encoded) for encoded in sequences]
            self._stop_ids.update(stop for stop in stops if stop is not None)
            if None in stops:
                odd["stop token not learned"] = "what is learned does not end on a token that stops generation"
        return sequences, odd

    def pieces(self, encoded: Encoded) -> tuple[Piece, ...]:
        """The tokens of a row that are within max_length, with their texts."""
        ids = encoded.ids[: min(self._max_length or PREVIEW_TOKENS, PREVIEW_TOKENS)]
        texts = token_texts(self._tokenizer, ids)
        return tuple(
            Piece(id=number, text=text, learned=learned)
            for number, text, learned in zip(ids, texts, encoded.learned, strict=False)
        )
