"""The run file: a `RunConfig` as YAML, written with comments and read back strictly."""

import difflib
import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from planner.config.run_config import RunConfig
from planner.whole_file import whole_file
from profiles.errors import ConfigError

VERSION = 1

DUMPER: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where there is one: the same text in a fifth of the time."""

SCHEMA_FILE = "run.schema.json"
SCHEMA_LINE = f"yaml-language-server: $schema={SCHEMA_FILE}"
"""What a YAML language server reads in a comment."""

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "What is trained, and the cards it was planned for.",
        ("version", "model", "trust_remote_code", "gpu", "num_gpus", "num_nodes", "parallel"),
    ),
    (
        "How: which weights, in which number formats.",
        ("method", "quantization", "double_quant", "dtype", "mixed_precision"),
    ),
    ("The adapter.", ("lora", "peft")),
    ("What is learned from the data.", ("objective", "preference")),
    ("The data, and how long a row may be.", ("data", "max_length", "max_target_length", "packing", "padding_free")),
    (
        "The batch. Examples of one optimizer step: per_device_train_batch_size x gradient_accumulation_steps.",
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    ),
    (
        "What is paid for memory.",
        (
            "gradient_checkpointing",
            "checkpoint_every_n_layers",
            "checkpoint_offload",
            "attn_implementation",
            "loss",
            "probe",
        ),
    ),
    (
        "The optimizer.",
        (
            "optim",
            "learning_rate",
            "lr_scheduler_type",
            "warmup_steps",
            "weight_decay",
            "max_grad_norm",
            "num_train_epochs",
            "max_steps",
            "seed",
        ),
    ),
    (
        "What is written, and how often, in optimizer steps.",
        (
            "output_dir",
            "logging_steps",
            "save_steps",
            "save_total_limit",
            "eval_steps",
            "load_best_model_at_end",
            "early_stopping_patience",
            "samples",
            "report_to",
        ),
    ),
)
"""Comment and knobs of each block of the file, in order; each knob is in one block."""


def write_run_file(config: RunConfig, path: Path, comment_lines: Iterable[str] = ()) -> None:
    """Write `config` with every knob spelled out, below a header of `comment_lines`.

    The file appears whole or not at all: an interrupted write leaves the old one.
    """
    with whole_file(path) as unfinished:
        unfinished.write_text(run_file_text(config, comment_lines), encoding="utf-8")


def run_file_text(config: RunConfig, comment_lines: Iterable[str] = ()) -> str:
    """What `write_run_file` writes."""
    values = config.model_dump(mode="json")
    header = "".join(f"# {line}".rstrip() + "\n" for text in comment_lines for line in text.splitlines() or [""])
    blocks = [
        f"# {comment}\n" + yaml.dump({name: values[name] for name in names}, Dumper=DUMPER, sort_keys=False)
        for comment, names in SECTIONS
    ]
    return "\n".join([header, *blocks] if header else blocks)


def read_run_file(path: Path) -> RunConfig:
    """The `RunConfig` in the YAML file at `path`.

    Raises ConfigError, with the key, its value and the rule, for anything that is not exactly a run file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no run file {path}", hint="write one with `fitune plan MODEL -o FILE`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the run file {path} cannot be read: {error}") from error
    return parse_run_file(text, path)


def parse_run_file(text: str, path: Path) -> RunConfig:
    """The `RunConfig` in `text`; `path` is only named in errors. Raises ConfigError."""
    try:
        values = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}, line {line}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        raise ConfigError(f"the run file {path} is empty", hint="write one with `fitune plan MODEL -o FILE`")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no `key: value` lines, but {type(values).__name__} {str(values)[:40]}")
    _check_version(values.get("version", VERSION), path)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        # A misspelt key is also a missing one; the misspelling is the better news.
        raise config_error(min(error.errors(), key=lambda e: e["type"] != "extra_forbidden"), path) from error


class _StrictLoader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does, where `no` is a word and `2e-4` a number, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_StrictLoader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"^[-+]?(?:(?:\.\d+|\d+\.\d*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _check_version(version: object, path: Path) -> None:
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise ConfigError(
            f"{path} has version {version}, but this fitune reads up to version {VERSION}", hint="update fitune"
        )


def config_error(details: ErrorDetails, path: Path) -> ConfigError:
    """One sentence for one of pydantic's errors: the key, the value, the rule and the way out."""
    # A union (`all-linear` or a list) adds the name of the branch it tried last.
    parts = [part for part in details["loc"] if isinstance(part, int) or part.isidentifier()]
    key = ".".join(str(part) for part in parts)
    if details["type"] == "extra_forbidden":
        section = _section_of(parts[:-1])
        near = difflib.get_close_matches(str(details["loc"][-1]), section.model_fields, n=1)
        return ConfigError(
            f"{path} has a key {key or details['loc'][-1]}, but there is no such knob",
            hint=f"did you mean {near[0]}?" if near else f"the knobs here are {', '.join(section.model_fields)}",
        )
    if details["type"] == "missing":
        return ConfigError(f"{path} has no {key}", hint=_meaning(parts))
    if details["type"] == "value_error":
        # pydantic puts the words "Value error, " before a message of our own.
        message = details["msg"].removeprefix("Value error, ")
        return ConfigError(f"{path}: {key}: {message}" if key else f"{path}: {message}")
    if details["type"] == "model_type":
        return ConfigError(f"{path}: {key} is {details['input']!r}, but it must be a section with keys of its own")
    rule = re.sub(r"^Input should (?:be )?", "it must be ", details["msg"]).replace("a valid tuple", "a list")
    return ConfigError(f"{path}: {key} is {details['input']!r}, but {rule}", hint=_meaning(parts))


def _section_of(parts: Sequence[int | str]) -> type[BaseModel]:
    """The model that holds the knobs below `parts`."""
    section: type[BaseModel] = RunConfig
    for part in parts:
        field = section.model_fields.get(str(part))
        annotation = field.annotation if field else None
        nested = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        section = nested[0] if nested else section
    return section


def _meaning(parts: Sequence[int | str]) -> str | None:
    """What the knob at `parts` means, in its own documentation."""
    names = [part for part in parts if isinstance(part, str)]
    field = _section_of(names[:-1]).model_fields.get(names[-1]) if names else None
    return f"{names[-1]}: {field.description}" if field and field.description else None
