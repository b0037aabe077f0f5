"""The data of a run in each peer's own words: keys of its file, and files beside it."""

import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.config.chat_template import DEFAULT_TEMPLATE
from planner.config.run_config import DATA_COLUMNS, DataFormat, DataKnobs, RunConfig
from profiles.errors import ConfigError

LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""The loader of `datasets` for each kind of file."""

NAME = "fitune_data"
"""What the data set is called where it needs a name."""


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where rows are, how they read, and whether prompts and answers are turns of a conversation.

    `has_template` is whether the model has a chat template; None where that cannot be seen from here.
    """

    path: str
    format: DataFormat
    in_turns: bool
    has_template: bool | None

    @property
    def loader(self) -> str:
        """The loader of `datasets`. Raises ConfigError for a folder, which only `load_from_disk` reads."""
        suffix = Path(self.path).suffix.lower()
        if suffix not in LOADERS:
            raise ConfigError(
                f"data.path is {self.path}, which other trainers cannot load by name",
                hint=f"give a file: {', '.join(LOADERS)}",
            )
        return LOADERS[suffix]


@dataclass(frozen=True, slots=True)
class DataKeys:
    """Keys about the data, and files beside the configuration, by name."""

    keys: dict[str, Any]
    companions: dict[str, str] = field(default_factory=dict)


def data_source(config: RunConfig) -> DataSource:
    """The data of `config`. Raises ConfigError without any, or if its format is not declared and cannot be seen."""
    if config.data is None:
        raise ConfigError("the run file has no data section", hint="add `data: {path: FILE}`, or --set data.path=FILE")
    row = _first_row(Path(config.data.path))
    declared = config.data.format if config.data.format != "auto" else _format_of(row or {}, config.data)
    prompt = (row or {}).get("prompt") or (row or {}).get("chosen")
    in_turns = declared in ("messages", "sharegpt", "alpaca") or isinstance(prompt, list)
    return DataSource(config.data.path, declared, in_turns, _has_template(Path(config.model)))


def _has_template(model: Path) -> bool | None:
    """Whether the model in a folder has a chat template, as Transformers looks for it; None if it is no folder."""
    if not (model / "tokenizer_config.json").is_file():
        return None
    beside = (model / "chat_template.jinja", model / "additional_chat_templates")
    return any(path.exists() for path in beside) or "chat_template" in json.loads(
        (model / "tokenizer_config.json").read_text("utf-8")
    )


def _format_of(row: Mapping[str, Any], data: DataKnobs) -> DataFormat:
    for name, columns in DATA_COLUMNS.items():
        if all(column in row for column in columns):
            return name
    raise ConfigError(
        f"how the rows of {data.path} read cannot be seen from here",
        hint=f"say it: --set data.format=FORMAT, one of {', '.join(DATA_COLUMNS)}",
    )


def _first_row(path: Path) -> dict[str, Any] | None:
    """The first row of a text file; None for what is not there or needs a library."""
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in (".jsonl", ".json", ".csv"):
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if suffix == ".csv":
                return next(iter(csv.DictReader(lines)), None)
            if suffix == ".jsonl":
                return dict(json.loads(next(line for line in lines if line.strip())))
            rows = json.load(lines)
            return dict(rows[0] if isinstance(rows, list) else rows)
    except (OSError, ValueError, TypeError, StopIteration, IndexError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint=f"`fitune data {path}` lists what is wrong"
        ) from error


def axolotl_data(source: DataSource, folder: Path) -> DataKeys:
    """The `datasets` of Axolotl."""
    row = {"path": source.path, "ds_type": source.loader, **_axolotl_type(source)}
    keys: dict[str, Any] = {"datasets": [row]}
    if source.in_turns and source.format != "alpaca":
        keys["chat_template"] = "tokenizer_default"
    return DataKeys(keys)


def _axolotl_type(source: DataSource) -> dict[str, Any]:
    answers = {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    match source.format:
        case "messages":
            names = {"role": "role", "content": "content"}
            return {
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": names,
                **answers,
            }
        case "sharegpt":
            names = {"role": "from", "content": "value"}
            return {
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": names,
                **answers,
            }
        case "alpaca":
            return {"type": "alpaca"}
        case "text":
            return {"type": "completion", "field": "text"}
        case "prompt-completion" if not source.in_turns:
            plain = {"format": "{instruction}", "no_input_format": "{instruction}"}
            return {"type": {"field_instruction": "prompt", "field_output": "completion", **plain}}
        case "preference" if not source.in_turns:
            names = {f"field_{name}": name for name in ("prompt", "chosen", "rejected")}
            return {"split": "train", "type": names | {"prompt_format": "{prompt}", "chosen_format": "{chosen}"}}
        case "preference":
            names = {"field_messages": "prompt", "field_chosen": "chosen", "field_rejected": "rejected"}
            return {"type": "chat_template.default", "split": "train", **names}
        case "kto" if not source.in_turns:
            names = {f"field_{name}": name for name in ("prompt", "completion", "label")}
            return {"split": "train", "type": names | {"prompt_format": "{prompt}"}}
        case _:
            raise ConfigError(
                f"rows in the format {source.format}, in turns, have no form of Axolotl", hint="use messages"
            )


def llama_factory_data(source: DataSource, folder: Path) -> DataKeys:
    """The name of a data set, and the `dataset_info.json` that describes it. The chat template is the tokenizer's."""
    described = {"file_name": os.path.relpath(source.path, folder), **_llama_factory_form(source)}
    info = json.dumps({NAME: described}, indent=2) + "\n"
    return DataKeys({"dataset": NAME, "dataset_dir": str(folder)}, {"dataset_info.json": info})


def _llama_factory_form(source: DataSource) -> dict[str, Any]:
    roles = {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
    chat = {"role_tag": "role", "content_tag": "content", **roles}
    match source.format:
        case "messages":
            return {"formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": chat}
        case "sharegpt":
            return {"formatting": "sharegpt", "columns": {"messages": "conversations"}}
        case "alpaca":
            columns = {"prompt": "instruction", "query": "input", "response": "output"}
            return {"formatting": "alpaca", "columns": columns}
        case "text":
            return {"formatting": "alpaca", "columns": {"prompt": "text"}}
        case "prompt-completion" if not source.in_turns:
            return {"formatting": "alpaca", "columns": {"prompt": "prompt", "response": "completion"}}
        case "preference" if not source.in_turns:
            columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
            return {"formatting": "alpaca", "ranking": True, "columns": columns}
        case "kto" if not source.in_turns:
            columns = {"prompt": "prompt", "response": "completion", "kto_tag": "label"}
            return {"formatting": "alpaca", "columns": columns}
        case _:
            raise ConfigError(
                f"rows in the format {source.format}, in turns, have no form of LLaMA-Factory",
                hint="give prompt and answers as text, or export --to trl",
            )


def trl_data(source: DataSource, folder: Path) -> DataKeys:
    """The `datasets` of TRL, which knows the formats of run files but two."""
    if source.format in ("alpaca", "sharegpt"):
        raise ConfigError(
            f"rows in the format {source.format} are not read by TRL's command line",
            hint="rewrite them as messages, or export --to script, which converts them",
        )
    keys: dict[str, Any] = {"datasets": [{"path": source.loader, "data_files": source.path, "split": "train"}]}
    if source.format == "messages":
        keys["assistant_only_loss"] = True
    if not source.in_turns or source.has_template is not False:
        return DataKeys(keys)
    name = "chat_template.jinja"
    return DataKeys(keys | {"chat_template_path": str(folder / name)}, {name: DEFAULT_TEMPLATE})


def unsloth_data(source: DataSource, folder: Path) -> DataKeys:
    """The files of Unsloth, which looks at their columns itself."""
    kinds: dict[DataFormat, str] = {"messages": "chatml", "sharegpt": "sharegpt", "alpaca": "alpaca", "text": "raw"}
    if source.format not in kinds:
        raise ConfigError(
            f"rows in the format {source.format} are not read by Unsloth's command line",
            hint="rewrite them as messages",
        )
    keys: dict[str, Any] = {"data.local_dataset": [source.path], "data.format_type": kinds[source.format]}
    return DataKeys(keys | {"training.train_on_completions": source.format != "text"})


DATA_KEYS: dict[str, Callable[[DataSource, Path], DataKeys]] = {
    "axolotl": axolotl_data,
    "llama-factory": llama_factory_data,
    "trl": trl_data,
    "unsloth": unsloth_data,
}
"""What each peer is told about the data, for a file that will lie in a folder."""
