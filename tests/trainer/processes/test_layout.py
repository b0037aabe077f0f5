"""What accelerate makes of the files is what the processes are told."""

import json
import os
from pathlib import Path

import pytest

from planner.config.run_config import LoraKnobs, ParallelKnobs, RunConfig
from profiles.errors import ConfigError
from trainer.processes.layout import accelerate_config, check_layout, deepspeed_config, engine_variables, write_layout


def config(strategy="fsdp", **knobs):
    parallel = ParallelKnobs(strategy=strategy, **{k: knobs.pop(k) for k in ("offload",) if k in knobs})
    usual = {"model": "m", "gpu": "A100-SXM4-80GB", "num_gpus": 4, "num_nodes": 2, "parallel": parallel}
    if knobs.get("method") != "full":
        usual["lora"] = LoraKnobs()
    return RunConfig(**{**usual, **knobs})


LAYOUTS = {
    "fsdp": config(),
    "fsdp, weights in host memory": config(offload="parameters", method="full"),
    "fsdp, four bits": config(method="qlora", quantization="nf4"),
    "ddp": config("ddp"),
    "zero2": config("zero2", offload="optimizer", method="full"),
    "zero3": config("zero3", offload="parameters", method="full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accelerate_reads_the_file_as_the_processes_are_told(layout, tmp_path, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import launch as accelerate_launch

    run = LAYOUTS[layout]
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        monkeypatch.delenv(name)
    write_layout(run, tmp_path)
    argv = ["--config_file", str(tmp_path / "accelerate.yaml"), "--main_process_ip", "head"]
    argv += ["--main_process_port", "29777", "--machine_rank", "1", "--module", "trainer", "run.yaml"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(argv))
    assert (arguments.num_processes, arguments.num_machines) == (8, 2)
    if run.parallel.strategy.startswith("zero"):
        told = {"ACCELERATE_USE_DEEPSPEED": "true"} if arguments.use_deepspeed else {}
        assert arguments.deepspeed_config_file == str(tmp_path / "deepspeed.json")
        assert json.loads((tmp_path / "deepspeed.json").read_text()) == deepspeed_config(run)
    else:
        told = accelerate_launch.prepare_multi_gpu_env(arguments)
    variables = engine_variables(run)
    assert {name: told.get(name) for name in variables} == variables
    assert ("ACCELERATE_USE_FSDP" in told) == (run.parallel.strategy == "fsdp")


@pytest.mark.slow
def test_the_sharding_of_the_run_is_that_of_accelerates_plugin(monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy

    for name, value in engine_variables(LAYOUTS["fsdp, weights in host memory"]).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.cpu_ram_efficient_loading
    assert isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"


def test_deepspeed_is_told_every_figure_but_those_of_the_model():
    content = deepspeed_config(LAYOUTS["zero3"])
    # Transformers makes sizes of buffers of these words, from the model; all else is said.
    assert {name for name, value in content["zero_optimization"].items() if value == "auto"} == {
        "reduce_bucket_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    }
    assert json.dumps(content).count('"auto"') == 3
    assert content["train_batch_size"] == 8
    zero = content["zero_optimization"]
    assert (zero["stage"], zero["offload_param"]["device"], zero["offload_optimizer"]["device"]) == (3, "cpu", "cpu")
    # Its own Adam steps in host memory, with the rates of the run.
    assert content["optimizer"]["params"]["lr"] == LAYOUTS["zero3"].learning_rate


def test_a_run_of_one_process_has_no_files(tmp_path):
    write_layout(RunConfig(model="m", lora=LoraKnobs()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_processes_of_a_cpu_take_no_deepspeed():
    check_layout(config(gpu=None))
    with pytest.raises(ConfigError, match="zero2, but accelerate starts DeepSpeed on cards only"):
        check_layout(config("zero2", gpu=None))


def test_a_layout_that_is_only_planned_is_refused():
    tensor = ParallelKnobs(strategy="fsdp", tensor_parallel_size=2)
    run = RunConfig(model="m", method="full", gpu="A100-SXM4-80GB", num_gpus=4, parallel=tensor)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 2, which fitune plans but does not launch"):
        check_layout(run)


def test_accelerate_gets_one_process_for_each_card():
    content = accelerate_config(LAYOUTS["ddp"], Path("run"))
    assert (content["distributed_type"], content["num_processes"], content["num_machines"]) == ("MULTI_GPU", 8, 2)
