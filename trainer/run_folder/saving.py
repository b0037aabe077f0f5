"""What a run leaves: checkpoints that are whole or do not count, and its final weights."""

import shutil
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from planner.config.run_config import RunConfig
from trainer.processes.agreement import wait_for_all
from trainer.processes.ranks import rank
from trainer.run_folder.checkpoints import STATE_FILE, best_checkpoint, discard_old_checkpoints
from trainer.run_folder.gathering import whole_weights
from trainer.run_folder.seal import seal


class SealCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Seals each checkpoint once it is on the disk, and only then deletes the older ones."""

    def __init__(self, config: RunConfig) -> None:
        self._keep = config.save_total_limit
        self._output_dir = Path(config.output_dir)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Seal the checkpoint of this step."""
        # Each process adds its random state, and its share of what is shared out.
        wait_for_all()
        if state.is_world_process_zero:
            seal(self._output_dir / f"checkpoint-{state.global_step}")
            best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None
            discard_old_checkpoints(self._output_dir, self._keep, best)


def load_finished(trainer: Trainer, config: RunConfig, checkpoint: Path) -> None:
    """Put the weights and the state of a finished run into `trainer`, which would do one step too many itself."""
    weights = best_checkpoint(checkpoint) if config.load_best_model_at_end else checkpoint
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    if config.parallel is not None and config.parallel.strategy != "ddp":
        # Shares can be read once the model is shared out, as at the begin of training.
        trainer._prepare_for_training(trainer.state.max_steps, None, str(weights))
    else:
        trainer._load_from_checkpoint(str(weights))


def save_final(trainer: Trainer, config: RunConfig, folder: Path) -> None:
    """Write the adapter, or the whole model, and the tokenizer with its chat template; `folder` appears whole.

    All processes take part, the first one writes. Raises EnvironmentFault if its memory cannot hold the weights.
    """
    weights = whole_weights(trainer, config)
    if rank() == 0:
        unfinished = folder.with_name(f".{folder.name}")
        for old in (unfinished, folder):
            shutil.rmtree(old, ignore_errors=True)
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(unfinished, state_dict=weights)
        trainer.processing_class.save_pretrained(unfinished)
        unfinished.rename(folder)
    wait_for_all()
