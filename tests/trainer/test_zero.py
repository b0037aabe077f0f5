"""DeepSpeed's stages with two processes of a CPU. It is no part of what is tested by default: `pip install deepspeed`.

accelerate starts DeepSpeed on cards only. The fixture lets it in, as `trainer/processes/fsdp_on_cpu.py` does with
FSDP2; what trains, saves, gathers and reads checkpoints is what does so on cards.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from planner.config.run_config import LoraKnobs, ParallelKnobs
from planner.config.run_file import write_run_file
from planner.memory.estimate import estimate
from planner.step.resolve import resolve_step
from profiles.hub import read_model_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

ON_CPU = """
import os, sys
os.environ["DS_ACCELERATOR"] = "cpu"
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
import trainer.processes.agreement

make_state, join = AcceleratorState.__init__, trainer.processes.agreement.join

def on_cpu(self, *arguments, mixed_precision=None, deepspeed_plugin=None, **others):
    make_state(self, mixed_precision, *arguments, deepspeed_plugin=deepspeed_plugin, **others)
    if deepspeed_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self._mixed_precision = DistributedType.DEEPSPEED, "no"
        deepspeed_plugin.set_mixed_precision(mixed_precision or "no")
        deepspeed_plugin.select(_from_accelerator_state=True)
        self.deepspeed_plugins = deepspeed_plugin
        PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED

def join_both(config):
    join(config)
    import deepspeed
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)

AcceleratorState.__init__, trainer.processes.agreement.join = on_cpu, join_both
from trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def train_two(tmp_path):
    """Trains a run with two processes of torchrun; what they said."""
    script = tmp_path / "on_cpu.py"
    script.write_text(ON_CPU)

    def run(config, *options):
        write_run_file(config, tmp_path / "run.yaml")
        argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), env.get("PYTHONPATH", "")])
        done = subprocess.run(
            [*argv, str(tmp_path / "run.yaml"), *options], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def predicted_bytes(config):
    model = read_model_folder(Path(config.model))
    return estimate(model, resolve_step(config, model, None), None).allocated_bytes


@pytest.mark.parametrize(
    ("strategy", "method"), [("zero1", "full"), ("zero2", "full"), ("zero3", "full"), ("zero3", "lora")]
)
def test_each_stage_learns_what_one_process_does_and_goes_on_from_its_shares(
    tiny_config, train, train_two, tmp_path, strategy, method
):
    import torch
    from safetensors.torch import load_file

    knobs = {"max_length": 32, "max_steps": 4, "save_steps": 2, "gradient_checkpointing": False, "method": method}
    knobs["learning_rate"] = 1e-3
    if method == "lora":
        knobs["lora"] = LoraKnobs(r=4, target_modules=("q_proj",))
    one = tiny_config(**knobs, gradient_accumulation_steps=2, output_dir=str(tmp_path / "one"))
    two = tiny_config(**knobs, num_gpus=2, parallel=ParallelKnobs(strategy=strategy), output_dir=str(tmp_path / "two"))
    train(one)
    train_two(two)

    def weights(config):
        (file,) = (Path(config.output_dir) / "final").glob("*.safetensors")
        return file

    measured = json.loads((Path(two.output_dir) / "record.jsonl").read_text().splitlines()[0])["measured"]
    assert predicted_bytes(two) == pytest.approx(measured["allocated_bytes"], rel=0.05)

    found, expected = load_file(weights(two)), load_file(weights(one))
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=2e-4)

    before = weights(two).read_bytes()
    weights(two).unlink()
    (Path(two.output_dir) / "checkpoint-4" / "files.json").unlink()
    assert f"continuing from {two.output_dir}/checkpoint-2" in train_two(two, "--resume")
    assert weights(two).read_bytes() == before
