"""`fitune launch`: predict a run file, and start the trainer on it."""

import json as jsonlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from planner.asking.question import Card, find_card, own_experience
from planner.commands.launch_options import (
    AutoResume,
    DryRun,
    Force,
    MasterAddr,
    MasterPort,
    MaxRestarts,
    NodeRank,
    Print,
    Resume,
    RunFile,
)
from planner.commands.options import Json
from planner.commands.runs import last_record
from planner.commands.terminal import tracing
from planner.config.run_config import RunConfig
from planner.jobs.job import job_of
from planner.jobs.targets import TARGETS, Cluster
from planner.predict.prediction import Prediction, Target, predict, predict_traced
from planner.report.document import print_json
from planner.report.plan_document import plan_document, prediction_document
from planner.search.planning import Plan, make_plan
from planner.search.request import Request
from profiles.errors import EnvironmentFault, FituneError, UnsupportedError
from profiles.model_catalog import resolve_model

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def launch(
    run_file: RunFile,
    resume: Resume = False,
    auto_resume: AutoResume = False,
    dry_run: DryRun = False,
    force: Force = False,
    max_restarts: MaxRestarts = None,
    node_rank: NodeRank = None,
    master_addr: MasterAddr = None,
    master_port: MasterPort = None,
    print_for: Print = None,
    json: Json = False,
) -> int:
    """Train what a run file says, if it is predicted to fit.

    Returns 0 if all steps were done, 1 if the run failed or does not fit, 2 for bad input, 128 + N if signal N stopped
    it with a checkpoint.

    A run that is predicted not to fit in the memory that is free now is refused, with a configuration that would. A
    probe tries the longest batch before the first step. If memory runs out there or later, the run restarts by itself
    from its last checkpoint with smaller micro-batches and more accumulation, then with more checkpointing: effective
    batch, learning rate and order of the data stay the same. The run folder (output_dir) keeps the settings that fit
    as run.yaml, and a record of predicted and measured.

    The first Ctrl-C or SIGTERM finishes the step and writes a checkpoint; the second one stops at once. SIGUSR1, which
    schedulers send, acts like the first one however often it comes. --resume goes on from the newest undamaged
    checkpoint, also with another number of cards where the strategy allows it.

    A run on several machines is launched on each of them, with an output_dir that they share. If a process is killed,
    all go on from the last checkpoint. --print writes a job file that does this on a cluster.

    \b
    Examples:
      fitune launch run.yaml --dry-run
      fitune launch run.yaml --resume
      fitune launch run.yaml --node-rank 1 --master-addr node0
      fitune launch run.yaml --print slurm > run.sbatch
    """
    from planner.config.run_file import read_run_file

    config = read_run_file(run_file)
    if print_for is not None:
        return _print_job(config, run_file, print_for)
    card = _card(config)
    target = _target(config, card)
    prediction = _prediction(config, target)
    if prediction is not None and prediction.verdict == "no" and not force:
        return _refuse(prediction, json)
    if prediction is not None and not node_rank:
        _announce(prediction)
    flags = {"--resume": resume, "--auto-resume": auto_resume, "--dry-run": dry_run}
    place = {"--node-rank": node_rank, "--master-addr": master_addr, "--master-port": master_port}
    # With --json, stdout is for the one object; what the trainer prints there goes beside it.
    exit_code = _start(
        run_file, prediction, flags, {"--max-restarts": max_restarts, **place}, sys.stderr if json else None
    )
    if json:
        _print_outcome(config, prediction, exit_code, ran=not dry_run)
    return exit_code


def _print_job(config: RunConfig, run_file: Path, target: Cluster) -> int:
    sys.stdout.write(TARGETS[target](job_of(config, run_file.read_text(encoding="utf-8"), run_file)))
    return 0


def _print_outcome(config: RunConfig, prediction: Prediction | None, exit_code: int, *, ran: bool) -> None:
    """Print what was predicted, and the record of a run that did all its steps, as one object."""
    record = last_record(Path(config.output_dir)) if ran and exit_code == 0 else None
    told = prediction_document(prediction) if prediction else {"config": config.model_dump(mode="json")}
    print_json(told | {"exit_code": exit_code, "record": record})


def _start(
    run_file: Path,
    prediction: Prediction | None,
    flags: Mapping[str, bool],
    values: Mapping[str, object],
    stdout: IO[str] | None,
) -> int:
    """Start the trainer's launcher with the prediction in a file, and return its exit code."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".json") as file:
        if prediction is not None:
            jsonlib.dump(prediction.figures, file)
            file.flush()
        figures = Path(file.name) if prediction is not None else None
        return run_process(trainer_argv(run_file, figures, flags, values), stdout)


def trainer_argv(
    run_file: Path,
    prediction_file: Path | None,
    flags: Mapping[str, bool],
    values: Mapping[str, object],
) -> list[str]:
    """The command that starts the trainer's launcher, with the options that are given."""
    argv = [sys.executable, "-m", "trainer.launch", str(run_file)]
    given = {"--prediction": prediction_file, **values}
    argv += [word for name, value in given.items() if value is not None for word in (name, str(value))]
    return argv + [name for name, on in flags.items() if on]


def run_process(argv: Sequence[str], stdout: IO[str] | None = None) -> int:
    """Run a process to its end and return its exit code; signals are passed on to it, once."""
    early: list[int] = []
    pass_on = early.append
    before = {number: signal.signal(number, lambda number, _: pass_on(number)) for number in PASSED_ON}
    try:
        # In a group of its own: the terminal would send Ctrl-C to both, and the second one means "at once".
        process = subprocess.Popen(argv, stdout=stdout, process_group=0)
        pass_on = process.send_signal
        for number in early:
            process.send_signal(number)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - code if code < 0 else code


def _card(config: RunConfig) -> Card:
    """The card of this machine as it is now; where there is none, the one that was planned for."""
    if config.gpu is None:
        return find_card("cpu")
    try:
        return find_card("auto")
    except EnvironmentFault:
        return find_card(config.gpu)


def _target(config: RunConfig, card: Card) -> Target:
    """Where the run happens; an architecture that is not described is known by its folder."""
    try:
        profile = resolve_model(config.model).profile
        return Target(profile, card.gpu, card.free_bytes, experience=own_experience())
    except UnsupportedError as error:
        from planner.asking.subject import config_folder

        folder = config_folder(config.model, error)
        return Target(None, card.gpu, card.free_bytes, folder=folder, undescribed=error.message)


def _prediction(config: RunConfig, target: Target) -> Prediction | None:
    """What is predicted: by a trace for what the closed form does not describe, None where that fails as well."""
    why = target.undescribed
    try:
        if target.model is not None:
            return predict(config, target)
    except UnsupportedError as error:
        why = error.message
    try:
        with tracing(why):
            return predict_traced(config, target)
    except FituneError as error:
        # What cannot be predicted may train all the same.
        sys.stderr.write(f"note: nothing is predicted: {error.message}\n")
        return None


def _announce(prediction: Prediction) -> None:
    from planner.report.breakdown import print_prediction
    from planner.report.console import notes_console

    print_prediction(notes_console(), prediction)


def _refuse(prediction: Prediction, json: bool) -> int:
    """Say that the run does not fit, and what would."""
    config, target = prediction.config, prediction.target
    # What is not described cannot be searched.
    plan = make_plan(_request(config, target)) if target.model is not None else None
    if json:
        document = prediction_document(prediction)
        print_json(document | {"exit_code": 1, "record": None, "nearest": plan_document(plan) if plan else None})
    else:
        _print_refusal(prediction, plan)
    return 1


def _print_refusal(prediction: Prediction, plan: Plan | None) -> None:
    from planner.report.answer import print_facts, print_nearest, setting_facts
    from planner.report.breakdown import print_prediction
    from planner.report.console import data_console

    console = data_console()
    print_prediction(console, prediction)
    if plan is None:
        console.print(
            "\nA shorter max_length, fewer rows at once or a quantized base take less; --force starts it as it is."
        )
        return
    if plan.config is not None:
        console.print("\nThe same model, method and length would fit so:")
        print_facts(console, setting_facts(plan.config, plan.tokens_per_second, plan.cost))
    else:
        print_nearest(console, plan)
    console.print("\n`fitune plan` writes a run file that fits; --force starts this one all the same.")


def _request(config: RunConfig, target: Target) -> Request:
    """The question whose answer would be the nearest to `config`."""
    assert target.model is not None
    knobs: dict[str, object] = {"max_length": config.max_length}
    if config.lora is not None:
        knobs["lora"] = config.lora.model_dump()
    return Request(
        model=target.model,
        gpu=target.gpu,
        method=config.method,
        effective_batch_size=config.effective_batch_size,
        knobs=knobs,
        free_bytes=target.free_bytes,
        model_name=config.model,
        experience=target.experience,
    )
