"""Methods that move their ranks while they train: AdaLoRA and AdaMSS are told of each step."""

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from profiles.errors import ConfigError


class ScheduleRanks(TrainerCallback):  # type: ignore[misc]
    """Tells the adapter how many steps there are, and lets it move its ranks after each; other adapters have none.

    PEFT leaves both to the training loop (`AdaLoraModel.update_and_allocate`).
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Set the length of AdaLoRA's schedule. Raises ConfigError if its warm-up and its end leave nothing between."""
        allocator = getattr(_tuner(kwargs["model"]), "rankallocator", None)
        if allocator is None:
            return
        tinit, tfinal = allocator.peft_config.tinit, allocator.peft_config.tfinal
        if tinit >= state.max_steps - tfinal:
            raise ConfigError(
                f"tinit is {tinit} and tfinal {tfinal}, but the run has {state.max_steps} steps",
                hint="AdaLoRA moves ranks between the two: make them smaller, or train longer",
            )
        allocator.set_total_step(state.max_steps)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Move ranks by the gradients of this step, which are there until the next one begins."""
        allocate = getattr(_tuner(kwargs["model"]), "update_and_allocate", None)
        if allocate is not None:
            allocate(state.global_step + 1)


def _tuner(model: object) -> object:
    """The part of PEFT's model that knows the method; None for a model without an adapter."""
    return getattr(model, "base_model", None)
