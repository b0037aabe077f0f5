import json
import shutil
import warnings
from pathlib import Path

import pytest

from profiles.errors import InputError, RunError, UnknownModelError, UnsupportedError

pytestmark = pytest.mark.slow

LINEAR = {
    "llama": ["q_proj", "down_proj"],
    "tied": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "mixtral": ["q_proj", "o_proj"],
    "t5": ["q", "wo"],
}
OFT = {"oft_block_size": 32, "r": 0, "init_weights": False}

BY_LAYER = {
    "llama, lora": ("llama", "LORA", {}),
    "llama, rslora": ("llama", "LORA", {"use_rslora": True}),
    "llama, dora": ("llama", "LORA", {"use_dora": True}),
    "llama, adalora": ("llama", "ADALORA", {"total_step": 10, "init_r": 6, "target_r": 3}),
    "llama, ia3": ("llama", "IA3", {"feedforward_modules": ["down_proj"], "init_ia3_weights": False}),
    "llama, loha": ("llama", "LOHA", {"init_weights": False}),
    "llama, lokr": ("llama", "LOKR", {"init_weights": False}),
    "llama, oft": ("llama", "OFT", OFT),
    "llama, boft": ("llama", "BOFT", {"boft_block_size": 4}),
    "llama, vera": ("llama", "VERA", {"target_modules": ["q_proj"], "d_initial": 0.5}),
    "gpt2, lora": ("gpt2", "LORA", {"fan_in_fan_out": True}),
    "gpt2, dora": ("gpt2", "LORA", {"fan_in_fan_out": True, "use_dora": True}),
    "mixtral, lora": ("mixtral", "LORA", {}),
    "t5, lora": ("t5", "LORA", {}),
    "tied, lora": ("tied", "LORA", {}),
    "tied, lora on the input embedding": ("tied", "LORA", {"target_modules": ["q_proj", "embed_tokens"]}),
    "tied, lora on the head": ("tied", "LORA", {"target_modules": ["q_proj", "lm_head"]}),
}
AS_A_WHOLE = {
    "llama, norms": ("llama", "LN_TUNING", {"target_modules": ["input_layernorm"]}),
    "llama, pissa": ("llama", "LORA", {"init_lora_weights": "pissa"}),
    "llama, lora and a trained head": ("llama", "LORA", {"modules_to_save": ["lm_head"]}),
    "llama, hra": ("llama", "HRA", {"init_weights": False}),
    "mixtral, lora on experts": ("mixtral", "LORA", {"target_parameters": ["mlp.experts.down_proj"]}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Makes a base model of a family, once."""
    from safetensors.torch import load_file, save_file
    from transformers.utils.logging import disable_progress_bar

    from trainer.tiny_model import write_tiny_model

    disable_progress_bar()
    folder = tmp_path_factory.mktemp("bases")

    def base(family):
        path = folder / family
        if not path.exists():
            write_tiny_model(path, "llama" if family == "tied" else family)
            if family == "tied":
                config = json.loads((path / "config.json").read_text())
                (path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
                tensors = load_file(path / "model.safetensors")
                del tensors["lm_head.weight"]
                save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return base


@pytest.fixture
def adapted(bases, tmp_path):
    """Makes an adapter whose weights are all random, and what its model says: base, adapter, logits."""

    def make(family, peft_type, options, dtype="float32"):
        options = {"target_modules": LINEAR[family], **options} if peft_type != "PROMPT_TUNING" else options
        import torch
        from peft import PeftType, get_peft_model
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        path, adapter = bases(family), tmp_path / "adapter"
        task = "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)](task_type=task, **options)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            # PEFT says that an adapted tied embedding needs care; that care is what is tested.
            warnings.simplefilter("ignore")
            model = get_peft_model(load(path, dtype), config).eval()
            for parameter in model.parameters():
                if parameter.requires_grad:
                    # The weights of a T5 are small, so what reaches its logits is smaller still.
                    parameter.data += (0.5 if family == "t5" else 0.02) * torch.randn_like(parameter)
            model.save_pretrained(adapter)
        return path, adapter, logits(model)

    return make


def load(path, dtype="float32"):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    encoder_decoder = AutoConfig.from_pretrained(path).is_encoder_decoder
    model_class = AutoModelForSeq2SeqLM if encoder_decoder else AutoModelForCausalLM
    return model_class.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


def logits(model):
    import torch

    tokens = torch.tensor([[5, 9, 300, 22, 17, 45]])
    more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(tokens, **more).logits.float()


def merged(base, adapter, out, dtype="float32"):
    """The plan of the merge, and the model that it writes, loaded."""
    import torch

    from trainer.finish.base_checkpoint import open_base
    from trainer.finish.merge_weights import plan_merge
    from trainer.finish.model_folder import _write_config

    checkpoint = open_base(str(base))
    out.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = plan_merge(checkpoint, adapter, getattr(torch, dtype), False)
        plan.write(out, lambda _: None)
    if not (out / "config.json").exists():
        _write_config(out, checkpoint, plan.unties, dtype)
    return plan, load(out, dtype)


@pytest.mark.parametrize("case", BY_LAYER.values(), ids=BY_LAYER)
def test_layer_by_layer_the_merged_model_has_the_logits_of_the_adapter(case, adapted, tmp_path):
    base, adapter, expected = adapted(*case)
    plan, model = merged(base, adapter, tmp_path / "out")
    assert type(plan).__name__ == "LayerwiseMerge"
    assert (logits(load(base)) - expected).abs().max() > 1e-3
    assert (logits(model) - expected).abs().max() < 1e-4
    embeddings = {"embed_tokens", "lm_head"} & {*case[2].get("target_modules", ())}
    assert plan.unties == bool(embeddings)


@pytest.mark.parametrize("case", AS_A_WHOLE.values(), ids=AS_A_WHOLE)
def test_as_a_whole_the_merged_model_has_the_logits_of_the_adapter(case, adapted, tmp_path):
    base, adapter, expected = adapted(*case)
    plan, model = merged(base, adapter, tmp_path / "out")
    assert type(plan).__name__ == "WholeMerge"
    assert (logits(load(base)) - expected).abs().max() > 1e-3
    assert (logits(model) - expected).abs().max() < 1e-4


def test_a_merged_reward_model_has_the_scores_of_the_adapter(bases, tmp_path, caplog):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from trainer.finish.base_checkpoint import open_base
    from trainer.finish.merge_weights import plan_merge

    tokens = torch.tensor([[5, 9, 300, 22]])
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(bases("llama"), num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(model, lora).eval()
        model.save_pretrained(tmp_path / "adapter")
        caplog.clear()
        plan = plan_merge(open_base(str(bases("llama"))), tmp_path / "adapter", torch.float32, False)
        plan.write(tmp_path, lambda _: None)
    # Transformers reports that the base has no head of this kind, which is as it should be.
    assert caplog.text == ""
    scores = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(tokens).logits
    assert (scores - model(tokens).logits).abs().max() < 1e-5


def test_the_names_in_the_files_are_those_of_the_base(adapted, tmp_path):
    from trainer.finish.base_checkpoint import open_base

    base, adapter, _ = adapted("mixtral", "LORA", {})
    merged(base, adapter, tmp_path / "out")
    assert open_base(str(tmp_path / "out")).tensors.keys() == open_base(str(base)).tensors.keys()


def test_a_base_that_leaves_out_the_prefix_of_the_model_is_merged(adapted, tmp_path):
    from safetensors.torch import load_file, save_file

    base, adapter, expected = adapted("gpt2", "LORA", {"fan_in_fan_out": True})
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    tensors = load_file(bare / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, bare / "model.safetensors", metadata={"format": "pt"})
    _, model = merged(bare, adapter, tmp_path / "out")
    assert (logits(model) - expected).abs().max() < 1e-4


def test_files_stay_below_their_limit_and_an_index_lists_them(adapted, tmp_path, monkeypatch):
    from trainer.finish import merge_weights

    monkeypatch.setattr(merge_weights, "SHARD_BYTES", 5_000_000)
    base, adapter, expected = adapted("llama", "LORA", {})
    plan, model = merged(base, adapter, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 5_000_000 + 10_000
    assert (
        plan.disk_bytes
        == json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["metadata"]["total_size"]
    )
    assert (logits(model) - expected).abs().max() < 1e-4


def test_a_sixteen_bit_merge_is_rounded_once(adapted, tmp_path):
    import torch
    from safetensors.torch import load_file

    base, adapter, _ = adapted("llama", "LORA", {})
    merged(base, adapter, tmp_path / "exact")
    merged(base, adapter, tmp_path / "rounded", "bfloat16")
    exact, rounded = (load_file(tmp_path / name / "model.safetensors") for name in ("exact", "rounded"))
    assert {tensor.dtype for tensor in rounded.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor.bfloat16(), rounded[name]) for name, tensor in exact.items())


def spoil(adapter: Path, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    name = min(tensors)
    tensors[name][0, 0] = value
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("options", [{}, {"init_lora_weights": "pissa"}], ids=["by layer", "as a whole"])
def test_an_adapter_that_is_no_number_is_refused(options, adapted, tmp_path):
    base, adapter, _ = adapted("llama", "LORA", options)
    spoil(adapter, float("nan"))
    with pytest.raises(RunError, match=r"^model\.layers\.0\.\S+\.weight is not finite after the merge"):
        merged(base, adapter, tmp_path / "out")


def test_weights_that_are_too_large_for_float16_are_refused(adapted, tmp_path):
    base, adapter, _ = adapted("llama", "LORA", {})
    spoil(adapter, 1e8)
    with pytest.raises(RunError, match="not finite") as caught:
        merged(base, adapter, tmp_path / "out", "float16")
    assert "float16 ends at 65504" in caught.value.hint


def test_prompts_cannot_be_merged(adapted, tmp_path):
    base, adapter, _ = adapted("llama", "PROMPT_TUNING", {"num_virtual_tokens": 4})
    with pytest.raises(UnsupportedError, match="PROMPT_TUNING learns tokens in front of the input"):
        merged(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("peft_type", ["BEFT", "LILY"])
def test_what_peft_itself_does_not_merge_is_refused(peft_type, adapted, tmp_path):
    base, adapter, _ = adapted("llama", peft_type, {})
    with pytest.raises(UnsupportedError, match=f"PEFT cannot merge {peft_type} into weights: "):
        merged(base, adapter, tmp_path / "out")


def test_a_kind_of_lora_that_peft_does_not_merge_is_refused(adapted, tmp_path):
    base, adapter, _ = adapted("llama", "LORA", {"alora_invocation_tokens": [5, 9]})
    with pytest.raises(UnsupportedError, match=r"PEFT cannot merge model\.layers\.0\.\S+: .*aLoRA"):
        merged(base, adapter, tmp_path / "out")


@pytest.mark.parametrize("other", ["gpt2", "mixtral"])
def test_an_adapter_of_another_base_is_refused(other, adapted, bases, tmp_path):
    _, adapter, _ = adapted("llama", "LORA", {})
    with pytest.raises(InputError, match="does not belong to the base"):
        merged(bases(other), adapter, tmp_path / "out")


def test_a_quantized_base_is_refused(bases, tmp_path):
    from trainer.finish.base_checkpoint import open_base

    path = tmp_path / "quantized"
    shutil.copytree(bases("llama"), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(InputError, match="is quantized with bitsandbytes; merged weights would be rounded") as caught:
        open_base(str(path))
    assert "--base MODEL" in caught.value.hint


def test_a_base_without_safetensors_is_refused(bases, tmp_path):
    from trainer.finish.base_checkpoint import open_base

    shutil.copy(bases("llama") / "config.json", tmp_path)
    with pytest.raises(UnknownModelError, match=r"lacks model\.safetensors"):
        open_base(str(tmp_path))


def test_a_damaged_base_is_told_in_a_sentence(bases, tmp_path):
    from trainer.finish.base_checkpoint import open_base

    path = tmp_path / "cut"
    shutil.copytree(bases("llama"), path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(RunError, match=r"model\.safetensors cannot be read"):
        open_base(str(path))
