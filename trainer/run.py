"""One run from its configuration to its record."""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import datasets
import torch
import transformers
from rich.console import Console
from transformers import TrainerState
from trl import SFTTrainer

from planner.run_config import RunConfig
from planner.run_file import write_run_file
from profiles.errors import ConfigError, EnvironmentFault, RunError
from trainer.build import load_architecture, load_model, load_tokenizer, wrap_with_adapter
from trainer.checkpoints import (
    CONFIG_FILE,
    FINAL,
    STATE_FILE,
    checkpoint_to_resume,
    discard_partial_checkpoints,
    is_last_step,
    last_checkpoint,
)
from trainer.data import load_examples
from trainer.environment import environment
from trainer.faults import FiniteLoss, StopOnSignal, Where, explaining
from trainer.hardware import check_config, check_kernels, expand_shared_heads
from trainer.interruption import Interruption
from trainer.meters import CpuMemory, CudaMemory, MemoryMeter, StepClock
from trainer.objectives import dropped_rows, make_trainer, rows_at_limit, why_dropped
from trainer.probe import LongestBatch
from trainer.progress import Display, ShowProgress
from trainer.record import Measured, Prediction, Result, RunRecord, Status, append_record


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of one process: a run, where it was written, what is expected, and whether to go on with it."""

    config: RunConfig
    run_file: Path
    prediction: Prediction | None = None
    resume: bool = False


def run(job: Job, display: Display, interruption: Interruption, console: Console) -> RunRecord:
    """Train, evaluate, save, and append the record, which is also returned; `console` gets remarks for the user.

    Raises InputError for bad input before anything is trained, and RunError for what stops the run; checkpoints that
    were written before stay whole.
    """
    config = job.config
    device = find_device(config)
    output_dir = Path(config.output_dir)
    checkpoint = open_run_folder(job)
    if checkpoint is not None:
        console.print(f"continuing from {checkpoint}", soft_wrap=True)
    with quiet_libraries():
        with explaining(config, lambda: Where(0, 0, checkpoint, job.run_file)):
            trainer = prepare(config, device, console)
        memory = CudaMemory(device) if device.type == "cuda" else CpuMemory()
        clock = StepClock(device)
        predicted = job.prediction.allocated_bytes if job.prediction else None
        # The clock stops before the longest batch is passed; the memory meter sees that batch too.
        for callback in (
            clock,
            LongestBatch(config, trainer),
            memory,
            FiniteLoss(),
            StopOnSignal(interruption),
            ShowProgress(display, memory, clock, predicted),
        ):
            trainer.add_callback(callback)
        status: Status = "failed"
        try:
            status = train(trainer, job, checkpoint, interruption)
        finally:
            memory.close()
            display.close()
            record = make_record(job, trainer, memory, clock, device, status)
            # A full disk must not hide what filled it.
            with contextlib.suppress(OSError):
                append_record(record, output_dir)
    return record


def find_device(config: RunConfig) -> torch.device:
    """The card or the CPU of the run, after the card is found able to do it.

    Raises EnvironmentFault without a card that was planned for, and ConfigError for what it cannot do.
    """
    if config.gpu is None:
        check_config(config, None)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EnvironmentFault(
            f"the run was planned for {config.gpu}, but torch {torch.__version__} finds no CUDA card",
            hint="`fitune doctor` looks for the reason; `gpu: null` trains on the CPU",
        )
    device = torch.device("cuda", 0)
    capability = torch.cuda.get_device_capability(device)
    check_kernels(torch.cuda.get_arch_list(), capability, torch.cuda.get_device_name(device))
    check_config(config, capability)
    expand_shared_heads(capability)
    return device


def open_run_folder(job: Job) -> Path | None:
    """Make the run folder ready, with a copy of the configuration; the checkpoint to go on from, if asked to.

    Raises ConfigError if there is nothing to go on from, or if the run in the folder is another one.
    """
    output_dir = Path(job.config.output_dir)
    checkpoint = checkpoint_to_resume(job.config) if job.resume else None
    discard_partial_checkpoints(output_dir)
    write_run_file(job.config, output_dir / CONFIG_FILE, ["The run in this folder, as it was launched."])
    return checkpoint


def prepare(config: RunConfig, device: torch.device, console: Console) -> SFTTrainer:
    """A trainer with data and model loaded. Raises InputError."""
    if config.data is None:
        raise ConfigError("the run file has no data section", hint="add `data: {path: FILE}`")
    # The adapter's weights are random; TRL seeds only what comes after them.
    transformers.set_seed(config.seed)
    architecture = load_architecture(config)
    tokenizer = load_tokenizer(config, architecture)
    examples = load_examples(config.data, tokenizer, config.seed)
    model = wrap_with_adapter(load_model(config, architecture, device), config)
    trainer = make_trainer(config, model, tokenizer, examples)
    remarks = list(examples.remarks)
    if dropped := dropped_rows(config, examples, trainer):
        remarks.append(
            f"{dropped} rows are left out: {why_dropped(config)}"
        )
    if full := rows_at_limit(config, trainer):
        remarks.append(f"{full} rows fill max_length {config.max_length}; what is longer is cut off")
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True, highlight=False)
    return trainer


def train(trainer: SFTTrainer, job: Job, checkpoint: Path | None, interruption: Interruption) -> Status:
    """Train to the end or to a signal, then evaluate and save. Raises RunError."""
    output_dir = Path(job.config.output_dir)

    def where() -> Where:
        discard_partial_checkpoints(output_dir)
        return Where(trainer.state.global_step, trainer.state.max_steps, last_checkpoint(output_dir), job.run_file)

    with explaining(job.config, where):
        if checkpoint is not None and is_last_step(checkpoint, job.config):
            load_finished(trainer, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if interruption.signal_number is not None and trainer.state.global_step < trainer.state.max_steps:
            return "interrupted"
        if trainer.state.global_step < trainer.state.max_steps:
            raise RunError(f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}")
        if trainer.eval_dataset is not None and _last_logged(trainer, "eval_loss", at_end=True) is None:
            trainer.evaluate()
        save_final(trainer, output_dir / FINAL)
    return "completed"


def load_finished(trainer: SFTTrainer, checkpoint: Path) -> None:
    """Put the weights and the state of a run's last step into `trainer`, which would do one step too many itself."""
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))


def save_final(trainer: SFTTrainer, folder: Path) -> None:
    """Write the adapter, or the whole model, and the tokenizer with its chat template; `folder` appears whole."""
    unfinished = folder.with_name(f".{folder.name}")
    for old in (unfinished, folder):
        shutil.rmtree(old, ignore_errors=True)
    trainer.accelerator.unwrap_model(trainer.model).save_pretrained(unfinished)
    trainer.processing_class.save_pretrained(unfinished)
    unfinished.rename(folder)


def make_record(
    job: Job, trainer: SFTTrainer, memory: MemoryMeter, clock: StepClock, device: torch.device, status: Status
) -> RunRecord:
    """What the run was to take and what it took."""
    return RunRecord(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        config=job.config,
        predicted=job.prediction,
        measured=Measured(
            allocated_bytes=memory.allocated_bytes,
            reserved_bytes=memory.reserved_bytes,
            process_bytes=memory.process_bytes,
            tokens_per_second=clock.tokens_per_second,
            phases=memory.phases,
        ),
        environment=environment(device),
        result=Result(
            status=status,
            steps=trainer.state.global_step,
            max_steps=trainer.state.max_steps,
            loss=_last_logged(trainer, "loss"),
            eval_loss=_last_logged(trainer, "eval_loss"),
            seconds=clock.seconds,
        ),
    )


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back bars and notices of the libraries that a user can do nothing about; real warnings still come."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # A slower 4-bit kernel on CPUs, and the age of checkpoint folders: both without a consequence here.
    for name in ("bitsandbytes", "transformers.trainer_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # PEFT and TRL still use names that Transformers will drop in its next major version.
        warnings.filterwarnings("ignore", category=FutureWarning)
        # PEFT tries a pattern of its own for fused experts on each layer.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        yield


def _last_logged(trainer: SFTTrainer, key: str, at_end: bool = False) -> float | None:
    """The newest value of `key` in the trainer's log; with `at_end` only one that belongs to the last step."""
    for entry in reversed(trainer.state.log_history):
        if key in entry and not (at_end and entry["step"] != trainer.state.global_step):
            return float(entry[key])
    return None
