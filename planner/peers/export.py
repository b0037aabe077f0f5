"""A run in the files of another trainer, complete and with the version they were written for."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from planner.config.run_config import RunConfig
from planner.peers import script
from planner.peers.data import DATA_KEYS, data_source
from planner.peers.peer import PEERS, writable_peers
from planner.peers.several_cards import SeveralCards, several_cards
from planner.peers.trl import COMMANDS
from planner.whole_file import whole_file
from profiles.errors import ConfigError

SCRIPT = "script"

NAMES = {
    "axolotl": "axolotl.yaml",
    "llama-factory": "llama_factory.yaml",
    "trl": "trl.yaml",
    "unsloth": "unsloth.yaml",
    SCRIPT: "train.py",
}
"""What the file is called in a folder."""

LIBRARIES = "torch 2.13, transformers 5.23, trl 1.16, peft 0.21, bitsandbytes 0.50"
"""Releases that scripts are tried with."""

SAYS: dict[str, frozenset[str]] = {
    "samples": frozenset(),
    "early_stopping_patience": frozenset({"axolotl", "llama-factory"}),
    "load_best_model_at_end": frozenset({"axolotl", "llama-factory", "trl", SCRIPT}),
}
"""Knobs beside training itself, and who has them; the others leave them out, and say so."""


@dataclass(frozen=True, slots=True)
class Export:
    """Files by their path, the configuration first, what starts them, and what they leave out."""

    files: dict[Path, str]
    command: str
    remarks: tuple[str, ...]

    @property
    def main(self) -> Path:
        """The file that is started."""
        return next(iter(self.files))


def targets() -> tuple[str, ...]:
    """What a run can be exported to."""
    return (*writable_peers(), SCRIPT)


def export_run(config: RunConfig, target: str, output: Path) -> Export:
    """The files of `target` for `config`, in the folder `output`, or under that name if it has a suffix.

    Nothing is written. Raises ConfigError for what the target cannot say or would get wrong.
    """
    if target not in targets():
        raise ConfigError(f"--to is {target}, which is not written", hint=f"one of: {', '.join(targets())}")
    if (error := script.refusal(config) if target == SCRIPT else PEERS[target].refusal(config)) is not None:
        raise error
    main = output if output.suffix else output / NAMES[target]
    remarks = tuple(_remarks(config, target))
    cards = several_cards(config, target, main.parent)
    command = _command(config, target, main, cards)
    header = _header(config, target, command, remarks)
    if target == SCRIPT:
        text = script.write_script(config, data_source(config), header + "\n")
        return Export({main: text, **_beside(main, cards.companions)}, command, remarks)
    data = DATA_KEYS[target](data_source(config), main.parent)
    keys = sections_of(PEERS[target].write(config) | cards.keys | data.keys, PEERS[target].sections)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    text = comment + yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=120)
    return Export({main: text, **_beside(main, data.companions | cards.companions)}, command, remarks)


def _beside(main: Path, companions: dict[str, str]) -> dict[Path, str]:
    return {main.parent / name: content for name, content in companions.items()}


def write_export(export: Export, *, force: bool = False) -> None:
    """Write all files of `export`, each whole. Raises ConfigError for one that is there already, unless `force`."""
    there = [path for path in export.files if path.exists()]
    if there and not force:
        raise ConfigError(f"there is a file {there[0]} already", hint="--force overwrites it")
    for path, text in export.files.items():
        with whole_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _header(config: RunConfig, target: str, command: str, remarks: tuple[str, ...]) -> str:
    written_for = LIBRARIES if target == SCRIPT else f"{PEERS[target].keys.format} {PEERS[target].keys.version}"
    today = date.today().isoformat()
    lines = [
        f"{config.model} on {config.gpu or 'a CPU'}, written by fitune on {today}",
        f"For {written_for}.",
        f"Start: {command}",
        *(f"Left out: {remark}" for remark in remarks),
    ]
    return "\n".join(lines)


def _command(config: RunConfig, target: str, main: Path, cards: SeveralCards) -> str:
    commands = {
        "axolotl": f"axolotl train {main}",
        "llama-factory": f"llamafactory-cli train {main}",
        "trl": f"trl {COMMANDS.get(config.objective, '')} --config {main}",
        "unsloth": f"unsloth train -c {main}",
        SCRIPT: str(main) if cards.before else f"python {main}",
    }
    return f"{cards.before}{commands[target]}{cards.after}"


def _remarks(config: RunConfig, target: str) -> Iterator[str]:
    """What is in the run and not in the export."""
    for knob, peers in SAYS.items():
        if getattr(config, knob) not in (None, False) and target not in peers:
            yield f"{knob}, which {target} has no key for"
    if target == "trl" and config.objective == "sft" and config.loss == "full":
        yield "loss full: TRL 1.16 always fuses head and loss, which takes less memory"
    if target == "unsloth" and config.report_to and set(config.report_to) - {"wandb", "tensorboard"}:
        yield "report_to, of which unsloth has wandb and tensorboard"
    if target == "unsloth":
        yield "lr_scheduler_type, max_grad_norm and what is logged: Unsloth's command line decides them"


def sections_of(keys: dict[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """Keys with a dot in the sections that they belong to."""
    nested: dict[str, Any] = {}
    for key, value in keys.items():
        section, _, name = key.partition(".")
        if name and section in sections:
            nested.setdefault(section, {})[name] = value
        else:
            nested[key] = value
    return nested
