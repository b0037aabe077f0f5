import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import trainer.launch
from planner.config.run_config import DataKnobs, LoraKnobs, RunConfig
from planner.config.run_file import write_run_file
from profiles.errors import ConfigError, DataError, EnvironmentFault
from trainer.launch import check, launch, main
from trainer.supervisor.training_process import STATUS_FILE, Command, training_command

RUN = Path("run file.yaml")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run that may begin, on a machine that has all libraries."""
    monkeypatch.setattr(trainer.launch.importlib.util, "find_spec", lambda name: name)
    (tmp_path / "model").mkdir()
    (tmp_path / "data.jsonl").write_text("{}")
    return RunConfig(
        model=str(tmp_path / "model"),
        lora=LoraKnobs(),
        data=DataKnobs(path=str(tmp_path / "data.jsonl")),
        output_dir=str(tmp_path / "out"),
    )


def test_a_run_on_a_card_sees_one_card(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    command = training_command(RunConfig(model="m", lora=LoraKnobs(), gpu="t4"), RUN)
    assert command.env["CUDA_VISIBLE_DEVICES"] == "2"
    assert command.env["PYTORCH_CUDA_ALLOC_CONF"] == command.env["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert "--cpu" not in command.argv


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_a_setting_of_the_allocator_that_the_user_made_stands_under_both_its_names(monkeypatch, name):
    for variable in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:128")
    env = training_command(RunConfig(model="m", lora=LoraKnobs(), gpu="t4"), RUN).env
    assert env["PYTORCH_CUDA_ALLOC_CONF"] == env["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:128"


def test_a_run_on_the_cpu_sees_no_card_and_uses_all_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = training_command(RunConfig(model="m", lora=LoraKnobs()), RUN)
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""
    threads = command.argv[command.argv.index("--num_cpu_threads_per_process") + 1]
    assert int(threads) == len(os.sched_getaffinity(0))
    assert "--cpu" in command.argv


def test_several_cards_get_a_process_each(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    command = training_command(RunConfig(model="m", lora=LoraKnobs(), gpu="t4", num_gpus=2), RUN)
    assert command.env["CUDA_VISIBLE_DEVICES"] == "4,5"
    starter = (
        "-m",
        "trainer.supervisor.process_per_card",
        "--nproc-per-node",
        "2",
        "--standalone",
        "--module",
        "trainer",
    )
    assert command.argv[1:] == (*starter, "run file.yaml")


def test_the_command_ends_with_the_trainer_and_its_arguments():
    command = training_command(RunConfig(model="m", lora=LoraKnobs()), RUN, resume=True)
    assert command.argv[1:3] == ("-m", "accelerate.commands.launch")
    assert command.argv[-4:] == ("--module", "trainer", "run file.yaml", "--resume")


def test_a_dry_run_prints_a_command_for_the_shell_and_changes_nothing(config, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert launch(config, RUN, dry_run=True) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("--module trainer 'run file.yaml'\n")
    assert printed.startswith("TOKENIZERS_PARALLELISM=false ")
    assert sorted(tmp_path.rglob("*")) == before


def test_data_is_asked_for_before_anything_starts(config):
    with pytest.raises(ConfigError, match="no data section"):
        check(config.model_copy(update={"data": None}), resume=False)
    with pytest.raises(DataError, match=r"data.path is nowhere.jsonl, but there is no such file"):
        check(config.model_copy(update={"data": DataKnobs(path="nowhere.jsonl")}), resume=False)


def test_a_folder_with_another_run_is_left_alone(config):
    (Path(config.output_dir) / "final").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds another run"):
        check(config, resume=False)


def test_there_must_be_something_to_resume(config):
    with pytest.raises(ConfigError, match="no checkpoint in"):
        check(config, resume=True)


def test_missing_libraries_are_named_with_the_command_that_installs_them(config, monkeypatch):
    monkeypatch.setattr(
        trainer.launch.importlib.util, "find_spec", lambda name: None if name in ("trl", "peft") else name
    )
    with pytest.raises(EnvironmentFault, match="training needs trl, peft") as fault:
        check(config, resume=False)
    assert fault.value.hint == "pip install 'fitune[train]'"


def test_bitsandbytes_is_needed_only_where_it_is_used(config, monkeypatch):
    monkeypatch.setattr(
        trainer.launch.importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else name
    )
    check(config, resume=False)
    with pytest.raises(EnvironmentFault, match="training needs bitsandbytes"):
        check(config.model_copy(update={"optim": "paged_adamw_8bit"}), resume=False)


def test_a_tracker_that_is_not_installed_is_told_with_the_command_that_installs_it(config, monkeypatch):
    monkeypatch.setattr(trainer.launch.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    check(config.model_copy(update={"report_to": ("tensorboard",)}), resume=False)
    with pytest.raises(EnvironmentFault, match="report_to names wandb, which is not installed") as fault:
        check(config.model_copy(update={"report_to": ("tensorboard", "wandb")}), resume=False)
    assert fault.value.hint == "`pip install wandb`, or leave it out"


def test_a_disk_that_cannot_hold_the_checkpoints_is_told_before(config, monkeypatch):
    with (Path(config.model) / "model.safetensors").open("wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(trainer.launch.shutil, "disk_usage", lambda _: shutil_usage(free=2 << 30))
    check(config, resume=False)
    full = config.model_copy(update={"method": "full", "lora": None, "save_total_limit": 2})
    # Half a billion weights, three tensors of 2 bytes each, three checkpoints: 9 GiB.
    with pytest.raises(EnvironmentFault, match=r"need 9.0 GiB, but 2.0 GiB are free"):
        check(full, resume=False)


def shutil_usage(free):
    return type("Usage", (), {"free": free})


@pytest.fixture
def fake_trainer(monkeypatch, tmp_path):
    """Replaces the training command by a Python script that can write to the status file."""

    def use(script):
        preamble = f"import json, os, signal, sys, time\nstatus = os.environ['{STATUS_FILE}']\n"
        preamble += "def say(**facts):\n    open(status, 'a').write(json.dumps(facts) + '\\n')\n"
        command = Command((sys.executable, "-c", preamble + script), {})
        monkeypatch.setattr(trainer.launch, "training_command", lambda *_, **__: command)

    return use


@pytest.mark.parametrize("code", [0, 1, 2, 143])
def test_the_exit_code_is_the_trainers_own(config, fake_trainer, code):
    # accelerate turns every failure into 1; the trainer's own word counts.
    fake_trainer(f"say(exit_code={code}); sys.exit({min(code, 1)})")
    assert launch(config, RUN) == code


def test_a_trainer_that_dies_without_a_word_has_failed(config, fake_trainer, capsys):
    fake_trainer("say(pid=os.getpid()); os.kill(os.getpid(), signal.SIGKILL)")
    assert launch(config, RUN) == 1
    said = capsys.readouterr().err
    assert "ended without a result" in said
    assert "no checkpoint was written yet; start again with `fitune launch run file.yaml`" in said


def test_a_signal_reaches_the_trainer(config, fake_trainer):
    fake_trainer(
        "def stop(number, _):\n    say(exit_code=128 + number); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, stop); say(pid=os.getpid())\n"
        f"os.kill({os.getpid()}, signal.SIGTERM); time.sleep(30)"
    )
    assert launch(config, RUN) == 143


def test_a_signal_before_the_trainer_listens_ends_it(config, fake_trainer, capsys):
    fake_trainer(f"os.kill({os.getpid()}, signal.SIGINT); time.sleep(30)")
    assert launch(config, RUN) == 130
    assert capsys.readouterr().err == ""


def test_the_prediction_is_left_for_the_trainer_and_never_an_old_one(config, fake_trainer, tmp_path):
    fake_trainer("say(exit_code=0)")
    prediction = tmp_path / "p.json"
    prediction.write_text(json.dumps({"allocated_bytes": 5}))
    launch(config, RUN, prediction=prediction)
    left = Path(config.output_dir) / "prediction.json"
    assert json.loads(left.read_text()) == {"allocated_bytes": 5}
    launch(config, RUN)
    assert not left.exists()


def test_mistakes_are_told_in_a_sentence(config, tmp_path, capsys):
    write_run_file(config.model_copy(update={"data": None}), tmp_path / "run.yaml")
    assert main([str(tmp_path / "run.yaml")]) == 2
    assert capsys.readouterr().err == ("error: the run file has no data section\n\nhint: add `data: {path: FILE}`\n")


def test_a_run_folder_that_cannot_be_made_is_told(config, tmp_path, capsys):
    (tmp_path / "file").touch()
    write_run_file(config.model_copy(update={"output_dir": str(tmp_path / "file" / "run")}), tmp_path / "run.yaml")
    assert main([str(tmp_path / "run.yaml")]) == 1
    assert capsys.readouterr().err.startswith("error: the run folder cannot be written: ")


def test_launching_needs_no_torch():
    code = (
        "import sys, trainer.launch, trainer.run_folder.record, trainer.data.formats; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
