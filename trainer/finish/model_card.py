"""The card of a merged model: a README.md with what is known of the run, for the Hub and for people."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from planner.records.run_record import RunRecord
from planner.report.answer import setting_facts
from planner.units import format_bytes, format_seconds
from trainer.run_folder.finished_run import FinishedRun

CARD_FILE = "README.md"
OBJECTIVES = {
    "sft": "supervised fine-tuning",
    "dpo": "direct preference optimization (DPO)",
    "ipo": "identity preference optimization (IPO)",
    "orpo": "odds ratio preference optimization (ORPO)",
    "kto": "Kahneman-Tversky optimization (KTO)",
    "reward": "reward modelling",
}


def model_card(name: str, base: str, base_folder: Path, run: FinishedRun, dtype: str) -> str:
    """The text of README.md for the merged model `name`; facts that no run left are left out."""
    peft_type = str((run.adapter or {}).get("peft_type", "adapter"))
    data = ModelCardData(
        base_model=None if Path(base).is_dir() else base,
        license=_license(base_folder),
        library_name="transformers",
        tags=["fitune", peft_type.lower()],
        model_name=name,
    )
    facts = [("base model", base), ("adapter", peft_type), ("weights", f"{dtype}, the adapter merged into the base")]
    if run.config is not None:
        facts += _settings(run)
    if run.record is not None:
        facts += _outcome(run.record)
    table = "".join(f"| {name} | {value} |\n" for name, value in facts)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{base}, fine-tuned with fitune.\n\n"
        f"| | |\n|---|---|\n{table}\n"
        f"The terms of {base} hold for this model too.\n"
    )


def _license(base_folder: Path) -> str | None:
    """The licence that the card of the base states; None without a card that can be read."""
    try:
        data: dict[str, object] = ModelCard.load(base_folder / CARD_FILE).data.to_dict()
    except (OSError, ValueError):
        return None
    stated = data.get("license")
    return str(stated) if stated else None


def _settings(run: FinishedRun) -> list[tuple[str, str]]:
    """What the run was told; of the data only the name, because a path is nobody else's business."""
    config = run.config
    assert config is not None
    return [
        ("objective", OBJECTIVES[config.objective]),
        *setting_facts(config, None, None),
        ("data", f"{Path(config.data.path).name if config.data else '-'}, rows of up to {config.max_length} tokens"),
        ("learning rate", f"{config.learning_rate:g}, {config.lr_scheduler_type}, {config.warmup_steps} steps warmup"),
        ("seed", str(config.seed)),
    ]


def _outcome(record: RunRecord) -> list[tuple[str, str]]:
    """What came of it: losses, time, memory as predicted and as measured, machine and versions."""
    result, measured, predicted = record.result, record.measured, record.predicted
    facts = [("steps", f"{result.steps} of {result.max_steps} in {format_seconds(result.seconds)}")]
    losses = {"loss": result.loss, "evaluation loss": result.eval_loss}
    facts += [(name, f"{loss:.4g}") for name, loss in losses.items() if loss is not None]
    sizes = {"predicted": predicted and predicted.allocated_bytes, "measured": measured.allocated_bytes}
    memory = [f"{format_bytes(size)} {how}" for how, size in sizes.items() if size]
    if memory:
        facts.append(("allocated memory", ", ".join(memory)))
    versions = ", ".join(f"{name} {version}" for name, version in record.environment.packages.items())
    return [*facts, ("card", record.environment.gpu or "none, a CPU"), ("versions", versions)]
