"""What a run left behind: the folder of its weights, and what is known of how they came to be. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.config.run_config import RunConfig
from planner.config.run_file import read_run_file
from planner.records.run_record import RunRecord
from profiles.errors import InputError
from trainer.run_folder.checkpoints import CONFIG_FILE, FINAL, last_checkpoint
from trainer.run_folder.record import read_records

ADAPTER_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MODEL_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """The weights in `folder`: those of an adapter of PEFT, described by `adapter`, or with None of a whole model.

    `config` and `record` are the run file and the last record of the run that wrote them, as far as they are there.
    """

    folder: Path
    adapter: dict[str, Any] | None
    config: RunConfig | None
    record: RunRecord | None

    @property
    def run_folder(self) -> Path:
        """Where the run file is; without one, the folder of the weights itself."""
        return self.folder.parent if self.config is not None else self.folder

    @property
    def base(self) -> str:
        """The model that the adapter is for: a folder, a Hub id or an alias. Raises InputError if none is named."""
        named = (self.adapter or {}).get("base_model_name_or_path") or (self.config and self.config.model)
        if not named:
            raise InputError(
                f"the adapter in {self.folder} does not say which model it is for",
                hint=f"write base_model_name_or_path into its {ADAPTER_FILE}",
            )
        return str(named)

    @property
    def trust_remote_code(self) -> bool:
        """Whether the user let the run execute the code that the model's repository ships."""
        return self.config is not None and self.config.trust_remote_code


def find_finished_run(path: Path) -> FinishedRun:
    """What is in `path`, the folder of a run, of an adapter or of a model. Raises InputError."""
    if not path.is_dir():
        raise InputError(f"there is no folder {path}", hint="`fitune runs` lists the runs that were recorded here")
    folder = path / FINAL if (path / FINAL).is_dir() else path
    adapter_file = folder / ADAPTER_FILE
    if not adapter_file.exists() and not (folder / MODEL_FILE).exists():
        raise _no_weights(path)
    if adapter_file.exists() and not (folder / WEIGHTS_FILE).exists():
        raise InputError(f"the adapter in {folder} has no {WEIGHTS_FILE}", hint="save it with PEFT as safetensors")
    # An adapter that was saved beside a whole run's files belongs to it; any other folder stands alone.
    run_folder = folder.parent
    of_a_run = (run_folder / CONFIG_FILE).exists()
    records = read_records(run_folder) if of_a_run else []
    return FinishedRun(
        folder=folder,
        adapter=json.loads(adapter_file.read_text(encoding="utf-8")) if adapter_file.exists() else None,
        config=read_run_file(run_folder / CONFIG_FILE) if of_a_run else None,
        record=records[-1] if records else None,
    )


def _no_weights(path: Path) -> InputError:
    """Why `path` holds nothing to work with: a run that did not end, or something else."""
    if not (path / CONFIG_FILE).exists():
        return InputError(
            f"{path} holds no adapter and no model",
            hint="name a run folder, or a folder with adapter_config.json or config.json",
        )
    checkpoint = last_checkpoint(path)
    way_out = f"or name its newest checkpoint, {checkpoint}" if checkpoint else "it has no checkpoint yet"
    return InputError(
        f"the run in {path} has not ended, so it has no final weights",
        hint=f"go on with `fitune launch RUN_FILE --resume`; {way_out}",
    )
