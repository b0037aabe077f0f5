"""What an evaluation decides: which checkpoint is kept, and when there is no more to gain.

Both look at the losses in the trainer's own log, which a checkpoint keeps, so a resumed run decides alike.
"""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainer.run_folder.checkpoints import evaluations_since_best


class SaveBest(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint whenever the evaluation loss is the lowest so far."""

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Save, if no evaluation before was better."""
        if evaluations_since_best(state.log_history) == 0:
            control.should_save = True


class StopEarly(TrainerCallback):  # type: ignore[misc]
    """Ends a run, with a checkpoint, after `patience` evaluations in a row without a lower loss."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.stopped = False

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Stop, if the patience is at its end."""
        if evaluations_since_best(state.log_history) >= self._patience:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True
