"""Each job file is run here, with the tools of its cluster replaced by scripts that note how they were called.

`sbatch --test-only`, SkyPilot's and Kubernetes' own validators were run by hand; trainer/README.md says which versions.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from planner.cli import main
from planner.config.run_config import LoraKnobs, ParallelKnobs, RunConfig
from planner.config.run_file import parse_run_file, write_run_file
from planner.jobs.job import job_of
from planner.jobs.targets import TARGETS
from profiles.errors import UnsupportedError
from profiles.gpu_catalog import find_gpu
from profiles.skypilot import accelerator_names

ONE = RunConfig(model="phi-2", lora=LoraKnobs(), gpu="T4")
MANY = RunConfig(
    model="llama2-70b",
    lora=LoraKnobs(),
    gpu="A100-SXM4-80GB",
    num_gpus=8,
    num_nodes=4,
    parallel=ParallelKnobs(strategy="fsdp"),
    output_dir="runs/seventy",
)
RUNS = {"one card": ONE, "four machines": MANY}


@pytest.fixture
def printed(tmp_path, capsys):
    def job_file(target, config):
        path = tmp_path / "my_Run.yaml"
        write_run_file(config, path)
        assert main(["launch", str(path), "--print", target]) == 0
        return capsys.readouterr().out

    return job_file


@pytest.fixture
def call(tmp_path):
    """Runs a script beside tools that note their arguments; what was called, and the exit code."""
    tools, work = tmp_path / "bin", tmp_path / "work"
    (work / ".venv" / "bin").mkdir(parents=True)
    (work / ".venv" / "bin" / "activate").touch()
    (tmp_path / "fitune" / "bin").mkdir(parents=True)
    (tmp_path / "fitune" / "bin" / "activate").touch()
    tools.mkdir()
    notes = tmp_path / "notes"

    def tool(name, does="exit 0"):
        note = f'import json, sys; print(json.dumps(["{name}", *sys.argv[1:]]), file=open("{notes}", "a"))'
        script = f"#!/bin/bash\n{sys.executable} -c '{note}' \"$@\"\n{does}\n"
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)

    def run(script, **variables):
        env = {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), **variables}
        done = subprocess.run(["bash", "-c", script], cwd=work, env=env, capture_output=True, text=True, check=False)
        calls = [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
        return calls, done.returncode, done.stderr

    run.tool, run.work = tool, work
    return run


def launched(path, *place):
    return ["fitune", "launch", str(path), "--auto-resume", *place]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("target", ["slurm", "torchrun"])
def test_scripts_are_clean_for_shellcheck(target, run, printed):
    checked = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "--severity=warning", "--shell=bash", "-"],
        input=printed(target, RUNS[run]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout


def slurm_job(call, printed, config, code):
    call.tool("fitune", f"exit {code}")
    call.tool("srun", 'shift 0; SLURM_NODEID=2 "$@"')
    call.tool("scontrol", "[ $1 = show ] && echo node7 && echo node8; exit 0")
    return call(
        printed("slurm", config), SLURM_SUBMIT_DIR=str(call.work), SLURM_JOB_ID="77", SLURM_JOB_NODELIST="n[7-8]"
    )


def test_a_slurm_job_launches_on_each_machine_with_its_number(call, printed):
    calls, code, said = slurm_job(call, printed, MANY, 0)
    assert code == 0, said
    run_file = call.work / "fitune-my-run-77.yaml"
    place = ("--node-rank", "2", "--master-addr", "node7", "--master-port", "20077")
    assert calls[-1] == launched(run_file, *place)
    assert parse_run_file(run_file.read_text(), run_file) == MANY


def test_a_slurm_job_that_was_told_to_stop_comes_again(call, printed):
    calls, code, _ = slurm_job(call, printed, ONE, 138)
    assert code == 138
    assert calls[-1] == ["scontrol", "requeue", "77"]
    assert launched(call.work / "fitune-my-run-77.yaml") in calls


def test_a_slurm_job_that_failed_does_not_come_again(call, printed):
    calls, code, _ = slurm_job(call, printed, ONE, 1)
    assert code == 1
    assert ["scontrol", "requeue", "77"] not in calls


def test_slurm_gives_notice_before_the_end(printed):
    lines = printed("slurm", MANY).splitlines()
    for option in ("--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=1", "--signal=USR1@300", "--requeue"):
        assert f"#SBATCH {option}" in lines


def test_a_skypilot_task_launches_with_the_first_address(call, printed):
    task = yaml.safe_load(printed("skypilot", MANY))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (4, "A100-80GB:8")
    call.tool("fitune")
    calls, code, said = call(task["run"], SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", SKYPILOT_NODE_RANK="1")
    assert code == 0, said
    assert calls == [launched("run.yaml", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "29500")]
    assert parse_run_file((call.work / "run.yaml").read_text(), Path("run.yaml")) == MANY


def test_a_card_without_a_name_in_skypilot_is_refused():
    odd = MANY.model_copy(update={"gpu": "RTX 4090"})
    with pytest.raises(UnsupportedError, match="SkyPilot's name of RTX 4090 is not known"):
        TARGETS["skypilot"](job_of(odd, "", Path("run.yaml")))


def test_each_card_with_a_name_in_skypilot_is_in_the_catalog():
    assert all(find_gpu(name).name == name for name in accelerator_names())


@pytest.mark.parametrize("run", RUNS)
def test_a_kubernetes_job_has_a_pod_for_each_machine(run, printed, call):
    config = RUNS[run]
    run_file, service, job = yaml.safe_load_all(printed("kubernetes", config))
    assert parse_run_file(run_file["data"]["run.yaml"], Path("run.yaml")) == config
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", config.num_nodes)
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": str(config.num_gpus)}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    call.tool("pip")
    call.tool("fitune")
    calls, code, said = call(container["args"][0], JOB_COMPLETION_INDEX="3")
    assert code == 0, said
    place = ("--node-rank", "3", "--master-addr", f"{name}-0.{name}", "--master-port", "29500")
    assert calls[-1] == launched("/fitune/run.yaml", *(place if config.num_nodes > 1 else ()))


def test_a_torchrun_script_goes_on_from_a_whole_checkpoint(call, printed):
    call.tool("torchrun")
    script = printed("torchrun", MANY)
    calls, code, said = call(script, NODE_RANK="1", MASTER_ADDR="head")
    assert code == 0, said
    where = ["--nproc-per-node", "8", "--nnodes", "4", "--node-rank", "1"]
    where += ["--master-addr", "head", "--master-port", "29500", "-m", "trainer", "fitune-my-run.yaml"]
    assert calls == [["torchrun", *where]]
    checkpoint = call.work / "runs" / "seventy" / "checkpoint-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "files.json").touch()
    calls, _, _ = call(script, NODE_RANK="1", MASTER_ADDR="head")
    assert calls[-1] == ["torchrun", *where, "--resume"]


def test_a_torchrun_script_asks_which_machine_it_is_on(call, printed):
    calls, code, said = call(printed("torchrun", MANY))
    assert (calls, code) == ([], 1)
    assert "NODE_RANK: the number of this machine, from 0" in said


def test_the_processes_of_a_cpu_ask_for_no_card(printed):
    config = RunConfig(model="phi-2", lora=LoraKnobs(), num_gpus=2)
    assert "gpus-per-node" not in printed("slurm", config)
    assert "accelerators" not in printed("skypilot", config)
    assert "nvidia" not in printed("kubernetes", config)


STUB_OF_RAY = """
import sys, types
done = []
def remote(**_):
    def task(work):
        task.work, task.options = work, lambda **options: types.SimpleNamespace(remote=lambda *given: (work, given))
        return task
    return task
def get(what): return what[0](*what[1]) if isinstance(what, tuple) else what
def machines(bundles):
    print(bundles, file=sys.stderr)
    return types.SimpleNamespace(ready=lambda: None)
ray = types.ModuleType("ray")
ray.init, ray.remote, ray.get = lambda: None, remote, get
ray.wait = lambda running: ([running[0]], running[1:])
parts = {
    "ray": {},
    "ray.exceptions": {"RayError": type("RayError", (Exception,), {})},
    "ray.util": {"get_node_ip_address": lambda: "10.0.0.1"},
    "ray.util.placement_group": {
        "placement_group": lambda bundles, strategy: machines(bundles),
        "remove_placement_group": lambda _: None,
    },
    "ray.util.scheduling_strategies": {"PlacementGroupSchedulingStrategy": lambda *_, **__: None},
}
for name, content in parts.items():
    module = sys.modules[name] = ray if name == "ray" else types.ModuleType(name)
    vars(module).update(content)
exec(compile(open(sys.argv[1]).read(), sys.argv[1], "exec"), {"__name__": "__main__"})
"""
"""What the driver calls of Ray, with tasks that run at once; it was run on a cluster of Ray 2.60 by hand."""


@pytest.mark.parametrize("run", RUNS)
def test_a_driver_for_ray_starts_fitune_once_on_each_machine(run, printed, call):
    config = RUNS[run]
    (call.work / "driver.py").write_text(printed("ray", config))
    (call.work / "stub.py").write_text(STUB_OF_RAY)
    call.tool("fitune")
    calls, code, said = call(f"{sys.executable} stub.py driver.py")
    assert code == 0, said
    assert f"[{', '.join([str({'CPU': 4 * config.num_gpus, 'GPU': config.num_gpus})] * config.num_nodes)}]" in said
    places = [
        ("--node-rank", str(rank), "--master-addr", "10.0.0.1", "--master-port", "29500")
        for rank in range(config.num_nodes)
    ]
    assert calls == [launched("fitune-my-run.yaml", *(place if config.num_nodes > 1 else ())) for place in places]
    assert parse_run_file((call.work / "fitune-my-run.yaml").read_text(), Path("run.yaml")) == config


def test_a_driver_for_ray_fails_where_one_machine_fails(printed, call):
    (call.work / "driver.py").write_text(printed("ray", MANY))
    (call.work / "stub.py").write_text(STUB_OF_RAY)
    call.tool("fitune", "exit 2")
    calls, code, _ = call(f"{sys.executable} stub.py driver.py")
    assert (len(calls), code) == (1, 2)
