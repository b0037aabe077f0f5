"""The table of round trips and validations, and that of the peers' own files, in `planner/peers/README.md`.

`python -m calibration.peers.page` makes both; a test fails when one is stale.
"""

import itertools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import planner
from calibration.peers.environment import ask_schema
from planner.config.run_config import RunConfig
from planner.peers.check import check_file, peer_of
from planner.peers.document import parse_document
from planner.peers.export import export_run, write_export
from planner.peers.peer import PEERS, writable_peers
from planner.peers.peer_file import read_peer_file
from planner.step.resolve import resolve_step
from profiles.errors import ConfigError
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model
from profiles.peer_keys import NoEffect

ROOT = Path(planner.__path__[0]).parent
PAGE = ROOT / "planner" / "peers" / "README.md"
FILES = ROOT / "tests" / "golden" / "peers"
MODEL, GPU = "meta-llama/Llama-3.1-8B", "a100-80gb"
FILE_CARD = "rtx-4090"
"""The card that the peers' files are asked for: some fit, some do not."""

VALIDATED = ("<!-- validated: python -m calibration.peers.page -->", "<!-- end of validated -->")
READ = ("<!-- read: python -m calibration.peers.page -->", "<!-- end of read -->")

DATA = {
    "sft": ("messages", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'),
    "kto": ("kto", '{"prompt": "a", "completion": "b", "label": true}'),
    "pairs": ("preference", '{"prompt": "a", "chosen": "b", "rejected": "c"}'),
}


@dataclass(slots=True)
class Tally:
    """What became of the runs that were written for a peer."""

    refused: int = 0
    same_step: int = 0
    accepted: int = 0
    written: int = 0


def study_runs(folder: Path) -> Iterator[RunConfig]:
    """Runs over all that peers have words for: methods, precisions, objectives, attention, optimizers, checkpoints."""
    bases: list[dict[str, Any]] = [
        {"method": "full", "lora": None, "dtype": "float32"},
        {"method": "full", "lora": None},
        {"method": "lora", "lora": {}},
        {"method": "lora", "lora": {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}},
        {"method": "qlora", "quantization": "nf4", "lora": {"r": 64, "lora_dropout": 0.05}},
        {"method": "qlora", "quantization": "fp4", "double_quant": False, "lora": {}},
        {"method": "qlora", "quantization": "int8", "lora": {}},
    ]
    ways: list[dict[str, Any]] = [
        {"loss": "full", "gradient_checkpointing": True},
        {"optim": "adamw_8bit", "checkpoint_offload": True, "per_device_train_batch_size": 4},
        {"optim": "paged_adamw_8bit", "gradient_checkpointing": False, "attn_implementation": "eager"},
        {"packing": True, "attn_implementation": "flash_attention_2", "checkpoint_every_n_layers": 2},
        {"data": {"eval_fraction": 0.1}, "eval_steps": 50, "load_best_model_at_end": True, "loss": "full"},
        {"optim": "adamw_8bit"},
        {"optim": "adamw_8bit", "packing": True},
        {"optim": "adamw_8bit", "gradient_checkpointing": False},
        {"objective": "dpo", "preference": {"beta": 0.2}},
        {"objective": "ipo", "preference": {"precompute_ref_log_probs": True}},
        {"objective": "orpo"},
        {"objective": "kto", "per_device_train_batch_size": 2},
        {"objective": "reward"},
        *({"num_gpus": 4, "parallel": {"strategy": strategy}} for strategy in ("ddp", "fsdp")),
        *({"num_gpus": 4, "parallel": {"strategy": strategy}} for strategy in ("zero1", "zero2", "zero3")),
        {"num_gpus": 8, "parallel": {"strategy": "zero2", "offload": "optimizer"}},
        {"num_gpus": 8, "parallel": {"strategy": "zero3", "offload": "parameters"}},
    ]
    for base, way in itertools.product(bases, ways):
        objective = way.get("objective", "sft")
        kind, _ = DATA.get(objective, DATA["pairs"])
        data = {"path": str(folder / f"{kind}.jsonl"), "format": kind} | way.get("data", {})
        try:
            yield RunConfig.model_validate({"model": MODEL, "gpu": find_gpu(GPU).name, **base, **way, "data": data})
        except ValidationError:
            continue


def validated_table() -> str:
    """For each peer: runs, refused ones, those that come back as the same step, those that its own schema accepts."""
    lines = [
        "| peer | release | runs | refused | written | same step after reading | accepted by its own schema |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, row in DATA.values():
            (folder / f"{kind}.jsonl").write_text(row + "\n", encoding="utf-8")
        runs = list(study_runs(folder))
        for peer in writable_peers():
            tally, faults = written_and_read(runs, peer, folder)
            for fault in sorted(faults):
                sys.stderr.write(f"{peer}: {fault}\n")
            keys = PEERS[peer].keys
            counts = (len(runs), tally.refused, tally.written, tally.same_step, tally.accepted)
            lines.append(f"| {keys.format} | {keys.version} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def written_and_read(runs: list[RunConfig], peer: str, folder: Path) -> tuple[Tally, set[str]]:
    """What became of `runs` at a peer, and what it said against those that it did not accept."""
    tally, files, faults = Tally(), [], set()
    for number, config in enumerate(runs):
        try:
            export = export_run(config, peer, folder / peer / str(number))
        except ConfigError:
            tally.refused += 1
            continue
        write_export(export)
        files.append(str(export.main))
        tally.written += 1
        tally.same_step += same_step(config, export.main, peer)
    answers = ask_schema(peer, files)
    assert isinstance(answers, dict)
    for fault in answers.values():
        tally.accepted += fault is None
        faults |= {fault} if fault else set()
    return tally, faults


def same_step(config: RunConfig, path: Path, peer: str) -> bool:
    """Whether the file comes to the step of `config`; preferences are compared as TRL trains them.

    The number of cards is that of the command that starts the file, as is the layout where accelerate's file has it.
    """
    model, gpu = find_model(MODEL), find_gpu(GPU)
    document = parse_document(path.read_text("utf-8"), path)
    said: dict[str, Any] = {"num_gpus": config.num_gpus} if config.num_gpus > 1 else {}
    if config.parallel is not None and (peer == "trl" or config.parallel.strategy == "ddp"):
        said |= {"parallel": config.parallel.model_dump()}
    file = read_peer_file(document, PEERS[peer], MODEL, model, gpu, said)
    trainer = file.traits if config.objective == "sft" else "trl"
    return resolve_step(file.config, model, gpu, trainer) == resolve_step(config, model, gpu, trainer)


def read_table() -> str:
    """For each of the peers' own files: its keys, and what is said about it."""
    card = find_gpu(FILE_CARD).name
    lines = [
        f"| file | keys | understood | no effect | off | not counted | on one {card} | smallest change that fits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    paths = sorted(path for path in FILES.iterdir() if path.suffix != ".md")
    lines += [_file_row(path) for path in paths]
    return "\n".join(lines)


def keys_table() -> str:
    """For each peer how many of its keys are read, cost nothing, or are not modeled."""
    lines = ["| peer | release | understood | no effect on memory | not modeled |", "|---|---|---|---|---|"]
    for peer in PEERS.values():
        groups = [group for keys in peer.keys.lineage for group in keys.groups]
        read = sum(len(keys.understood) for keys in peer.keys.lineage)
        none = sum(len(group.keys) for group in groups if isinstance(group, NoEffect))
        rest = sum(len(group.keys) for group in groups) - none
        lines.append(f"| {peer.keys.format} | {peer.keys.version} | {read} | {none} | {rest} |")
    return "\n".join(lines)


def _file_row(path: Path) -> str:
    found = peer_of(path)
    assert found is not None, path
    answer = check_file(*found, gpu=FILE_CARD)
    counts = Counter(account.status for account in answer.file.accounts)
    missing = ", ".join(f"`{account.key}`" for account in answer.file.not_counted) or "-"
    # Figures would make this table stale with each change of the memory model.
    said = answer.verdict
    changes = ", ".join(f"`{change.key}`" for change in answer.fix.changes) if answer.fix else "-"
    numbers = [len(answer.file.accounts), counts["understood"], counts["no effect"], counts["off"]]
    return f"| {path.name} | " + " | ".join(map(str, numbers)) + f" | {missing} | {said} | {changes} |"


def between(text: str, marks: tuple[str, str]) -> str:
    """What stands in `text` between two marks."""
    return text.partition(marks[0])[2].partition(marks[1])[0].strip()


def with_block(text: str, marks: tuple[str, str], block: str) -> str:
    """`text` with another block between two marks."""
    before, _, rest = text.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}\n{block}\n{marks[1]}{after}"


def read_block() -> str:
    """The tables that need none of the peers' packages."""
    return f"{keys_table()}\n\n{read_table()}"


def main() -> None:
    """Remake the page."""
    text = PAGE.read_text("utf-8")
    text = with_block(with_block(text, READ, read_block()), VALIDATED, validated_table())
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
