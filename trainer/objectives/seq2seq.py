"""Supervised fine-tuning of encoder-decoders such as Flan-T5, by the Seq2SeqTrainer of Transformers.

The encoder reads the prompt, the decoder learns the answer, which ends in the end-of-sequence token.
"""

from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from planner.config.run_config import RunConfig
from trainer.data.examples import Examples
from trainer.objectives.arguments import common_settings


def seq2seq_arguments(config: RunConfig, examples: Examples) -> Seq2SeqTrainingArguments:
    """The settings of Transformers for the run. Raises ConfigError for what it does not know."""
    return Seq2SeqTrainingArguments(
        **common_settings(config, examples), label_smoothing_factor=0.0, predict_with_generate=False
    )


def seq2seq_trainer(
    config: RunConfig, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples
) -> Seq2SeqTrainer:
    """A trainer of the answers. The last answer of a conversation is learned; the turns before it are the prompt."""
    if config.gradient_checkpointing and isinstance(model, PeftModel):
        # Below frozen embeddings nothing would ask a checkpointed layer for gradients; TRL's trainers do the same.
        model.enable_input_require_grads()
    return Seq2SeqTrainer(
        model=model,
        args=seq2seq_arguments(config, examples),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=_tokens(config, tokenizer, examples.train),
        eval_dataset=_tokens(config, tokenizer, examples.evaluation) if examples.evaluation else None,
        processing_class=tokenizer,
    )


def _tokens(config: RunConfig, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> Dataset:
    """`rows` as ids for the encoder, and labels for the decoder."""
    longest_answer = config.max_target_length or config.max_length

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        question, answer = prompt_and_answer(row)
        labels = list(tokenizer(text_target=answer, verbose=False)["input_ids"])
        if labels[-1:] != [tokenizer.eos_token_id]:
            labels.append(tokenizer.eos_token_id)
        prompt = tokenizer(question, truncation=True, max_length=config.max_length)
        return {
            "input_ids": prompt["input_ids"],
            "attention_mask": prompt["attention_mask"],
            "labels": labels[:longest_answer],
        }

    return rows.map(encode, remove_columns=rows.column_names)


def prompt_and_answer(row: dict[str, Any]) -> tuple[str, str]:
    """What the encoder reads and what the decoder learns of an example; encoder-decoders know no chat templates."""
    turns = row.get("messages") or row["prompt"]
    if isinstance(turns, str):
        return turns, row["completion"]
    turns = turns if "messages" in row else [*turns, *row["completion"]]
    last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
    return "\n".join(turn["content"] for turn in turns[:last]), turns[last]["content"]
