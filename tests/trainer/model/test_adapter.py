import json

import pytest

from planner.config.run_config import LoraKnobs
from profiles.errors import ConfigError
from trainer.run_folder.checkpoints import FINAL

pytestmark = pytest.mark.slow

LOHA = {"type": "loha", "r": 4, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture
def model(tiny_config):
    import torch

    from trainer.model.build import empty_model, load_architecture

    config = tiny_config()
    with torch.device("meta"):
        return empty_model(config, load_architecture(config))


def test_lora_gets_each_of_its_knobs(tiny_config, model):
    from trainer.model.adapter import adapter_config

    knobs = LoraKnobs(r=4, lora_alpha=12, lora_dropout=0.1, use_rslora=True, init_lora_weights="olora")
    made = adapter_config(tiny_config(lora=knobs), model)
    assert (made.r, made.lora_alpha, made.lora_dropout) == (4, 12, 0.1)
    assert (made.use_rslora, made.use_dora, made.init_lora_weights) == (True, False, "olora")


@pytest.mark.parametrize("peft_type", ["LOHA", "OFT", "LORA"])
def test_all_linear_is_each_linear_module_but_the_head(model, peft_type):
    from trainer.model.adapter import make_peft_config

    made = make_peft_config(peft_type, {"target_modules": "all-linear"}, model)
    assert made.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_all_linear_leaves_out_what_a_kernel_reads_past_an_adapter(tiny_config):
    import torch
    from transformers import MambaConfig

    from trainer.model.adapter import linear_names
    from trainer.model.build import empty_model

    config = tiny_config(attn_implementation="eager")
    with torch.device("meta"):
        mamba = empty_model(config, MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=100))
    assert linear_names(mamba) == ["dt_proj", "in_proj", "x_proj"]


def test_all_linear_leaves_out_a_router_that_is_a_linear_module(tiny_config):
    import torch
    from transformers import Llama4TextConfig

    from trainer.model.adapter import linear_names
    from trainer.model.build import empty_model

    sizes = {"hidden_size": 64, "intermediate_size": 64, "intermediate_size_mlp": 64, "head_dim": 16, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_hidden_layers": 1}
    with torch.device("meta"):
        llama4 = empty_model(tiny_config(), Llama4TextConfig(**sizes, **heads))
    names = linear_names(llama4)
    assert "q_proj" in names
    assert "router" not in names


def test_all_linear_names_a_numbered_module_by_what_it_is_part_of(tiny_config):
    import torch
    from transformers import CTRLConfig

    from trainer.model.adapter import linear_names
    from trainer.model.build import empty_model

    config = tiny_config(attn_implementation="eager")
    with torch.device("meta"):
        ctrl = empty_model(config, CTRLConfig(n_embd=64, dff=64, n_layer=2, n_head=4, vocab_size=100))
    # The layers 0 and 2 of the model are no targets.
    assert linear_names(ctrl) == ["Wk", "Wq", "Wv", "dense", "ffn.0", "ffn.2"]


def test_a_name_that_peft_refuses_is_answered_with_those_that_the_model_has(tiny_config, model):
    from trainer.model.build import wrap_with_adapter

    with pytest.raises(ConfigError, match="PEFT cannot put LORA on") as refused:
        wrap_with_adapter(model, tiny_config(lora=LoraKnobs(target_modules=("no_such",))))
    assert refused.value.hint.endswith("down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")


def test_what_peft_itself_refuses_is_told_in_a_sentence(model):
    from trainer.model.adapter import make_peft_config

    with pytest.raises(ConfigError, match="PEFT refuses the options of OFT: "):
        make_peft_config("OFT", {"r": 8, "oft_block_size": 8}, model)


def test_a_prompt_method_trains_and_its_prompt_is_kept(tiny_config, train):
    record = train(tiny_config(method="peft", lora=None, peft={"type": "prompt_tuning", "num_virtual_tokens": 4}))
    assert (record.result.status, record.result.steps) == ("completed", 3)


def test_a_run_of_another_method_goes_on_where_it_stopped(tiny_config, train, tmp_path):
    knobs = {"method": "peft", "lora": None, "peft": LOHA, "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = train(tiny_config(**knobs, max_steps=4, output_dir=str(tmp_path / "whole")))
    train(tiny_config(**knobs, max_steps=2))
    rest = train(tiny_config(**knobs, max_steps=4), resume=True)
    assert (rest.result.steps, rest.result.loss) == (4, whole.result.loss)
    saved = json.loads((tmp_path / "run" / FINAL / "adapter_config.json").read_text("utf-8"))
    assert (saved["peft_type"], saved["r"]) == ("LOHA", 4)


def test_other_options_on_resume_are_explained(tiny_config, train):
    knobs = {"method": "peft", "lora": None, "save_steps": 2}
    train(tiny_config(**knobs, peft=LOHA))
    with pytest.raises(ConfigError, match=r"^peft.r is 8, but the run in .* began with 4"):
        train(tiny_config(**knobs, peft=LOHA | {"r": 8}), resume=True)
