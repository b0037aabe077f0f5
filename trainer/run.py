"""One run from its configuration to its record."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import datasets
import torch
import transformers
from rich.console import Console
from transformers import Trainer, TrainerCallback

from planner.config.run_config import RunConfig
from planner.config.run_file import write_run_file
from planner.records.run_record import Measured, Prediction, Result, RunRecord, Status
from planner.records.run_store import StoreError
from profiles.errors import ConfigError, EnvironmentFault, RunError
from trainer.data.examples import load_examples
from trainer.loop.evaluation import SaveBest, StopEarly
from trainer.loop.log_file import LoggedDisplay
from trainer.loop.meters import CpuMemory, CudaMemory, MemoryMeter, StepClock
from trainer.loop.notices import hold_back_notices
from trainer.loop.probe import Probe
from trainer.loop.progress import Display, ShowProgress
from trainer.loop.samples import ShowSamples
from trainer.model.build import load_architecture, load_model, load_tokenizer, sharing_while_loading, wrap_with_adapter
from trainer.model.hardware import check_config, check_kernels, expand_shared_heads
from trainer.objectives.objective import dropped_rows, make_trainer, rows_at_limit, why_dropped
from trainer.processes.agreement import check_shared, join, largest, leave
from trainer.processes.layout import write_layout
from trainer.processes.ranks import local_rank, rank
from trainer.run_folder.checkpoints import (
    CONFIG_FILE,
    FINAL,
    checkpoint_to_resume,
    discard_partial_checkpoints,
    is_last_step,
    last_checkpoint,
    set_damaged_checkpoints_aside,
)
from trainer.run_folder.environment import environment
from trainer.run_folder.record import append_record, read_recoveries, remember_run
from trainer.run_folder.saving import SealCheckpoints, load_finished, save_final
from trainer.supervisor.faults import FiniteLoss, StopOnSignal, Where, explaining
from trainer.supervisor.interruption import Interruption
from trainer.supervisor.run_lock import holding


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
    were written before stay whole. Of several processes the first one writes.
    """
    with holding(Path(job.config.output_dir)) if rank() == 0 else contextlib.nullcontext(), quiet_libraries():
        record = _run(job, display, interruption, console)
        leave()
        return record


def _run(job: Job, display: Display, interruption: Interruption, console: Console) -> RunRecord:
    config = job.config
    device = find_device(config)
    join(config)
    output_dir = Path(config.output_dir)
    if config.num_nodes > 1:
        check_shared(output_dir, device)
    checkpoint = open_run_folder(job, console)
    with explaining(config, lambda: Where(0, 0, checkpoint, job.run_file)):
        trainer = prepare(config, device, console)
    memory = CudaMemory(device) if device.type == "cuda" else CpuMemory()
    clock = StepClock(device)
    if rank() == 0:
        display = LoggedDisplay(display, output_dir)
    predicted = job.prediction.allocated_bytes if job.prediction else None
    for callback in (clock, memory, FiniteLoss(), StopOnSignal(interruption), SealCheckpoints(config)):
        trainer.add_callback(callback)
    for callback in (*probes(config, trainer, memory, console), *optional_callbacks(config, trainer, console)):
        trainer.add_callback(callback)
    trainer.add_callback(ShowProgress(display, memory, clock, predicted))
    status: Status = "failed"
    try:
        status = train(trainer, job, checkpoint, interruption)
    finally:
        memory.close()
        display.close()
        record = make_record(job, trainer, measured(memory, clock, status, device), clock, device, status)
        if rank() == 0:
            keep_record(record, output_dir, console)
    return record


def keep_record(record: RunRecord, output_dir: Path, console: Console) -> None:
    """Leave `record` in the run folder and in the store of runs; what is wrong with either does not stop the run."""
    # A full disk must not hide what filled it.
    with contextlib.suppress(OSError):
        append_record(record, output_dir)
    try:
        remember_run(record, output_dir)
    except StoreError as error:
        console.print(f"note: {error.message}", soft_wrap=True, highlight=False)


def probes(config: RunConfig, trainer: Trainer, memory: MemoryMeter, console: Console) -> list[TrainerCallback]:
    """The probe, if the run has one; where it is asked for and cannot be, the user is told."""
    if not config.probe:
        return []
    if trainer.is_deepspeed_enabled:
        # Its hooks would take the gradients of another batch for those of a step.
        console.print(
            "note: no probe is made with DeepSpeed; whether the longest batch fits is found out in training itself",
            soft_wrap=True,
            highlight=False,
        )
        return []
    return [Probe(config, trainer, memory, console)]


def optional_callbacks(config: RunConfig, trainer: Trainer, console: Console) -> list[TrainerCallback]:
    """What the run file asks for beyond training."""
    callbacks: list[TrainerCallback] = []
    if config.load_best_model_at_end:
        callbacks.append(SaveBest())
    if config.early_stopping_patience is not None:
        callbacks.append(StopEarly(config.early_stopping_patience))
    if config.samples is not None:
        callbacks.append(ShowSamples(config.samples, trainer.processing_class, Path(config.output_dir), console))
    return callbacks


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
    if local_rank() >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"the run file is for {config.num_gpus} cards in a machine, but torch finds {torch.cuda.device_count()}",
            hint="set num_gpus to what there is, and CUDA_VISIBLE_DEVICES to nothing or to all of them",
        )
    # Each process has a card of its own; a quantized model cannot be moved later.
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    capability = torch.cuda.get_device_capability(device)
    check_kernels(torch.cuda.get_arch_list(), capability, torch.cuda.get_device_name(device))
    check_config(config, capability)
    expand_shared_heads(capability)
    return device


def open_run_folder(job: Job, console: Console) -> Path | None:
    """Make the run folder ready, with a copy of the configuration; the checkpoint to go on from, if asked to.

    Raises ConfigError if there is nothing to go on from, or if the run in the folder is another one.
    """
    output_dir = Path(job.config.output_dir)
    checkpoint = checkpoint_to_resume(job.config) if job.resume else None
    if rank() == 0:
        discard_partial_checkpoints(output_dir)
        for remark in set_damaged_checkpoints_aside(output_dir):
            console.print(f"note: {remark}", soft_wrap=True, highlight=False)
        # After a restart the run is read from there, and the file says what has changed.
        if job.run_file.absolute() != (output_dir / CONFIG_FILE).absolute():
            write_run_file(job.config, output_dir / CONFIG_FILE, ["The run in this folder, as it was launched."])
        write_layout(job.config, output_dir)
    if checkpoint is not None:
        console.print(f"continuing from {checkpoint}", soft_wrap=True)
    return checkpoint


def prepare(config: RunConfig, device: torch.device, console: Console) -> Trainer:
    """A trainer with data and model loaded. Raises InputError."""
    if config.data is None:
        raise ConfigError("the run file has no data section", hint="add `data: {path: FILE}`")
    # The adapter's weights are random; TRL seeds only what comes after them.
    transformers.set_seed(config.seed)
    architecture = load_architecture(config)
    tokenizer = load_tokenizer(config, architecture)
    examples = load_examples(config.data, tokenizer, config.seed)
    with sharing_while_loading(config):
        model = wrap_with_adapter(load_model(config, architecture, device), config)
        trainer = make_trainer(config, model, tokenizer, examples)
    remarks = list(examples.remarks)
    if dropped := dropped_rows(config, examples, trainer):
        remarks.append(f"{dropped} rows are left out: {why_dropped(config)}")
    if full := rows_at_limit(config, trainer):
        remarks.append(f"{full} rows fill max_length {config.max_length}; what is longer is cut off")
    for remark in remarks:
        console.print(f"note: {remark}", soft_wrap=True, highlight=False)
    return trainer


def train(trainer: Trainer, job: Job, checkpoint: Path | None, interruption: Interruption) -> Status:
    """Train to the end or to a signal, then evaluate and save. Raises RunError."""
    output_dir = Path(job.config.output_dir)

    def where() -> Where:
        if rank() == 0:
            discard_partial_checkpoints(output_dir)
        return Where(trainer.state.global_step, trainer.state.max_steps, last_checkpoint(output_dir), job.run_file)

    with explaining(job.config, where):
        finished = checkpoint is not None and is_last_step(checkpoint, job.config)
        if checkpoint is not None and finished:
            load_finished(trainer, job.config, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped_early = finished or any(isinstance(one, StopEarly) and one.stopped for one in callbacks_of(trainer))
        if trainer.state.global_step < trainer.state.max_steps and not stopped_early:
            if interruption.signal_number is not None:
                return "interrupted"
            raise RunError(f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}")
        if trainer.eval_dataset is not None and _last_logged(trainer, "eval_loss", at_end=True) is None:
            trainer.evaluate()
        save_final(trainer, job.config, output_dir / FINAL)
    return "completed"


def callbacks_of(trainer: Trainer) -> list[TrainerCallback]:
    """What listens to `trainer`."""
    callbacks: list[TrainerCallback] = trainer.callback_handler.callbacks
    return callbacks


def measured(memory: MemoryMeter, clock: StepClock, status: Status, device: torch.device) -> Measured:
    """What the run took: of several processes, the most that one took. After a failure, what this one knows."""

    def most(size: int | None) -> int | None:
        return size if status == "failed" else largest(size or 0, device) or None

    return Measured(
        allocated_bytes=most(memory.allocated_bytes),
        reserved_bytes=most(memory.reserved_bytes),
        process_bytes=most(memory.process_bytes),
        tokens_per_second=clock.tokens_per_second,
        tokens_per_step=clock.tokens_per_step,
        phases=memory.phases,
    )


def make_record(
    job: Job, trainer: Trainer, taken: Measured, clock: StepClock, device: torch.device, status: Status
) -> RunRecord:
    """What the run was to take and what it took."""
    return RunRecord(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        config=job.config,
        predicted=job.prediction,
        measured=taken,
        environment=environment(device),
        result=Result(
            status=status,
            steps=trainer.state.global_step,
            max_steps=trainer.state.max_steps,
            loss=_last_logged(trainer, "loss"),
            eval_loss=_eval_loss(trainer, job.config),
            seconds=clock.seconds,
        ),
        recoveries=read_recoveries(Path(job.config.output_dir)),
    )


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back bars and notices of the libraries that a user can do nothing about; real warnings still come."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    hold_back_notices()
    with warnings.catch_warnings():
        # PEFT and TRL still use names that Transformers will drop in its next major version.
        warnings.filterwarnings("ignore", category=FutureWarning)
        # PEFT tries a pattern of its own for fused experts on each layer.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not match")
        warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")
        # LN-tuning wraps norms, which PEFT takes for a mistake.
        warnings.filterwarnings("ignore", message="Unsupported layer type .* encountered")
        # AdaLoRA takes all ranks from some modules, which PEFT mistakes for weights that were not gathered.
        warnings.filterwarnings("ignore", message=r"Adapter '\w+': \d+ LoRA tensor\(s\) have invalid shape")
        yield


def _eval_loss(trainer: Trainer, config: RunConfig) -> float | None:
    """The evaluation loss of the weights that are kept."""
    if config.load_best_model_at_end and trainer.state.best_metric is not None:
        return float(trainer.state.best_metric)
    return _last_logged(trainer, "eval_loss")


def _last_logged(trainer: Trainer, key: str, at_end: bool = False) -> float | None:
    """The newest value of `key` in the trainer's log; with `at_end` only one that belongs to the last step."""
    for entry in reversed(trainer.state.log_history):
        if key in entry and not (at_end and entry["step"] != trainer.state.global_step):
            return float(entry[key])
    return None
