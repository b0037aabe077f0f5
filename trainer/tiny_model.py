"""A model with random weights and a data set of easy tasks, small enough to train on any machine in seconds.

`python -m trainer.tiny_model DIR` writes `DIR/model` and `DIR/data.jsonl`.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)
from transformers.utils.logging import disable_progress_bar

Family = Literal["llama", "gpt2", "gpt-neox", "mixtral", "t5"]

VOCAB_SIZE = 2048
HIDDEN_SIZE = 256
NUM_LAYERS = 6
MAX_POSITIONS = 512
BOS, EOS, PAD = "<s>", "</s>", "<pad>"

NO_ANSWER = "I would rather not say anything about that."

WORDS = (
    "apple",
    "bridge",
    "candle",
    "desert",
    "engine",
    "forest",
    "garden",
    "hammer",
    "island",
    "jacket",
    "kitten",
    "ladder",
    "market",
    "needle",
    "orange",
    "pencil",
    "quartz",
    "rocket",
    "silver",
    "tunnel",
    "umbra",
    "velvet",
    "window",
    "yellow",
)


def write_tiny_model(folder: Path, family: Family = "llama", seed: int = 0) -> None:
    """Write a checkpoint with random float32 weights, about 5 million, and a tokenizer trained on the easy tasks."""
    tokenizer = _train_tokenizer(text for row in easy_tasks(400, seed) for text in row)
    torch.manual_seed(seed)
    auto_class = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForCausalLM
    model = auto_class.from_config(_config(family), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_tiny_data(path: Path, num_rows: int = 160, seed: int = 0) -> None:
    """Write `num_rows` tasks as a JSONL file of `messages`."""
    rows = (
        {"messages": [*_turn("user", question), *_turn("assistant", answer)]}
        for question, answer in easy_tasks(num_rows, seed)
    )
    _write_rows(path, rows)


def write_tiny_preferences(path: Path, num_rows: int = 160, seed: int = 0) -> None:
    """Write `num_rows` tasks as a JSONL file of pairs in turns: the right answer, and none."""
    rows = (
        {
            "prompt": _turn("user", question),
            "chosen": _turn("assistant", answer),
            "rejected": _turn("assistant", NO_ANSWER),
        }
        for question, answer in easy_tasks(num_rows, seed)
    )
    _write_rows(path, rows)


def write_tiny_judgements(path: Path, num_rows: int = 160, seed: int = 0) -> None:
    """Write `num_rows` tasks as a JSONL file of judged answers: the right one is good, none is bad."""
    rows = (
        {"prompt": question, "completion": f" {answer if good else NO_ANSWER}", "label": good}
        for (question, answer), good in zip(easy_tasks(num_rows, seed), cycle((True, False)), strict=False)
    )
    _write_rows(path, rows)


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def easy_tasks(num_rows: int, seed: int) -> list[tuple[str, str]]:
    """Pairs of a question and its answer about numbers and words; the same for the same seed."""
    dice = random.Random(seed)  # noqa: S311
    kinds: Sequence[Callable[[random.Random], tuple[str, str]]] = (_sum, _larger, _backwards, _letters, _sorted, _next)
    return [dice.choice(kinds)(dice) for _ in range(num_rows)]


def _sum(dice: random.Random) -> tuple[str, str]:
    a, b = dice.randrange(100), dice.randrange(100)
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def _larger(dice: random.Random) -> tuple[str, str]:
    a, b = dice.sample(range(1000), 2)
    return f"Which number is larger, {a} or {b}?", f"{max(a, b)} is larger than {min(a, b)}."


def _backwards(dice: random.Random) -> tuple[str, str]:
    word = dice.choice(WORDS)
    return f"Write the word {word} backwards.", f"{word} backwards is {word[::-1]}."


def _letters(dice: random.Random) -> tuple[str, str]:
    word = dice.choice(WORDS)
    return f"How many letters has the word {word}?", f"The word {word} has {len(word)} letters."


def _sorted(dice: random.Random) -> tuple[str, str]:
    words = dice.sample(WORDS, 3)
    return f"Sort these words: {', '.join(words)}.", f"In order they are {', '.join(sorted(words))}."


def _next(dice: random.Random) -> tuple[str, str]:
    start, step = dice.randrange(50), dice.randrange(1, 10)
    row = [start + step * i for i in range(5)]
    return f"Continue: {', '.join(map(str, row[:4]))}.", f"The next number is {row[4]}, because each step adds {step}."


def _train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, which has no unknown words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[BOS, EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=MAX_POSITIONS
    )


def _config(family: Family) -> PreTrainedConfig:
    """The smallest shape of `family` in which tensors weigh more than bookkeeping."""
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": VOCAB_SIZE}
    shape = {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 704,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 8,
        "max_position_embeddings": MAX_POSITIONS,
    }
    match family:
        case "llama":
            return LlamaConfig(num_key_value_heads=4, **shape, **tokens)
        case "mixtral":
            return MixtralConfig(num_key_value_heads=4, num_local_experts=4, num_experts_per_tok=2, **shape, **tokens)
        case "gpt-neox":
            return GPTNeoXConfig(**shape, **tokens)
        case "gpt2":
            return GPT2Config(n_embd=HIDDEN_SIZE, n_layer=NUM_LAYERS, n_head=8, n_positions=MAX_POSITIONS, **tokens)
        case "t5":
            # In the form of Flan-T5: a gated activation, and a head that is not the embedding.
            return T5Config(
                d_model=HIDDEN_SIZE,
                d_kv=32,
                d_ff=704,
                num_layers=NUM_LAYERS // 2,
                num_heads=8,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                decoder_start_token_id=2,
                initializer_factor=0.1,
                **tokens,
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the model and its data below the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.tiny_model", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=get_args(Family), default="llama")
    parser.add_argument("--rows", type=int, default=160)
    arguments = parser.parse_args(argv)
    model, data = arguments.folder / "model", arguments.folder / "data.jsonl"
    disable_progress_bar()
    write_tiny_model(model, arguments.family)
    write_tiny_data(data, arguments.rows)
    sys.stdout.write(f"wrote {model}, random weights, and {data}, {arguments.rows} easy questions with answers\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
