"""The passages of Python that scripts are put together from, each readable by itself."""

from planner.config.run_config import DataFormat

READ_ROWS = """
def read_rows():
    return load_dataset(LOADER, data_files=DATA, split="train")
"""

CONVERSIONS: dict[DataFormat, str] = {
    "text": """
def example(row):
    return {"text": row["text"]}
""",
    "prompt-completion": """
def example(row):
    return {"prompt": row["prompt"], "completion": row["completion"]}
""",
    "messages": """
def example(row):
    return {"messages": [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]}
""",
    "sharegpt": '''
ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant"}


def example(row):
    """Turns by the names that chat templates know."""
    turns = row["conversations"]
    return {"messages": [{"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in turns]}
''',
    "alpaca": '''
def example(row):
    """An instruction with its input as a question."""
    question = row["instruction"] + ("\\n\\n" + row["input"] if row.get("input") else "")
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    answer = {"role": "assistant", "content": row["output"]}
    return {"messages": [*system, {"role": "user", "content": question}, answer]}
''',
    "preference": """
def example(row):
    return {name: row[name] for name in ("prompt", "chosen", "rejected") if name in row}
""",
    "kto": """
def example(row):
    label = str(row["label"]).lower() in ("true", "1")
    return {"prompt": row["prompt"], "completion": row["completion"], "label": label}
""",
}
"""From a row to the columns that TRL takes, by format."""

SPLIT_LAST_ANSWER = '''
def marks_answers(tokenizer):
    """Whether the chat template tells answers from the rest, with the token that ends them."""
    template = None
    try:
        if not has_generation_markers(tokenizer.chat_template):
            template = get_training_chat_template(tokenizer)
    except ValueError:
        return False
    return tokenizer.is_fast and is_chat_template_stop_token_trained(tokenizer, chat_template=template)


def split_last_answer(row):
    """The turns up to the last answer as prompt, and that answer as completion."""
    turns = row["messages"]
    last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
    return {"prompt": turns[:last], "completion": [turns[last]]}
'''

FULL_LOGITS = '''
class FullLogitsTrainer(SFTTrainer):
    """The loss of plain Transformers: all logits at once."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return Trainer.compute_loss(self, model, {**inputs, "use_cache": False}, return_outputs, num_items_in_batch)
'''

LONGEST_FIRST = """
class LongestFirst(torch.utils.data.Sampler):
    \"\"\"Rows shuffled anew in each epoch, the longest one first: memory ends in the first step or never.\"\"\"

    def __init__(self, rows, seed):
        lengths = [tokens_of(row) for row in rows]
        self.longest, self.num_rows = max(range(len(lengths)), key=lengths.__getitem__), len(lengths)
        self.seed, self.epoch = seed, 0

    def __len__(self):
        return self.num_rows

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        order.remove(self.longest)
        return iter([self.longest, *order])


def tokens_of(row):
    prompt = len(row.get("prompt_ids", ()))
    return prompt + max(len(ids) for name, ids in row.items() if name.endswith("_ids") and name != "prompt_ids")
"""

REFERENCE = "copy.deepcopy(model).requires_grad_(False).eval()"

PADDING_FREE = """    trainer.padding_free = True
    trainer.data_collator = DataCollatorForLanguageModeling(trainer.data_collator.pad_token_id, padding_free=True)
"""

MAIN = """
def main():
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = read_rows()
    PREPARE
    train, evaluation = rows, None
    if HELD_OUT:
        parts = rows.train_test_split(test_size=max(1, round(HELD_OUT * len(rows))), seed=SEED)
        train, evaluation = parts["train"], parts["test"]
    model = load_model()
    trainer = TRAINER(
ARGUMENTS
    )
    PADDING
    CAST
    ORDER
    trainer.train()
    trainer.save_model(str(OUTPUT / "final"))
    tokenizer.save_pretrained(str(OUTPUT / "final"))


if __name__ == "__main__":
    main()
"""
