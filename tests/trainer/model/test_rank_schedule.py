import json
from pathlib import Path

import pytest

from profiles.errors import ConfigError
from trainer.run_folder.checkpoints import FINAL

pytestmark = pytest.mark.slow

ADALORA = {"type": "adalora", "init_r": 6, "target_r": 2, "target_modules": ["q_proj", "v_proj"]}


def test_adalora_moves_its_ranks_over_the_steps_of_the_run(tiny_config, train):
    config = tiny_config(method="peft", lora=None, peft=ADALORA | {"tinit": 1, "tfinal": 2}, max_steps=6)
    train(config)
    saved = json.loads((Path(config.output_dir) / FINAL / "adapter_config.json").read_text("utf-8"))
    kept = [sum(ranks) for ranks in saved["rank_pattern"].values()]
    assert saved["total_step"] == 6
    # Six layers with two modules of rank 6 began; a budget of rank 2 on average is left.
    assert (len(kept), sum(kept)) == (12, 24)


def test_a_schedule_that_leaves_no_step_to_move_ranks_is_refused(tiny_config, train):
    config = tiny_config(method="peft", lora=None, peft=ADALORA | {"tinit": 2, "tfinal": 1}, max_steps=3)
    with pytest.raises(ConfigError, match="tinit is 2 and tfinal 1, but the run has 3 steps"):
        train(config)
