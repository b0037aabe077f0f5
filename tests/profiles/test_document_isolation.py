"""Documents that are joined to one row give the logits that each gives alone, where the facts say so."""

from importlib import import_module

import pytest

from profiles.architecture_traits import traits_of_type
from profiles.model import ModelProfile
from profiles.model_catalog import all_models

pytestmark = pytest.mark.slow

TYPES = {
    model.model_type: model
    for model in reversed(all_models())
    if not traits_of_type(model.model_type).remote and not model.is_encoder_decoder
}

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "vocab_size": 128,
    "sliding_window": 5,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "rotary_dim": 8,
    "layer_types": None,
}

DOCUMENTS = ([5, 9, 3, 7, 1, 2, 8], [4, 6, 3, 2, 11, 12, 13, 14, 15])


def small(model: ModelProfile) -> ModelProfile:
    """The architecture of a model in a few kilobytes."""
    changes = {field: value for field, value in SMALL.items() if getattr(model, field) is not None}
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    changes["num_key_value_heads"] = 4 if kv_heads == heads else 1 if kv_heads == 1 else 2
    return model.model_copy(update=changes)


def small_network(model: ModelProfile, code: str):
    torch, transformers = import_module("torch"), import_module("transformers")
    config = import_module("tests.profiles.transformers_models").transformers_config(small(model)).get_text_config()
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=code, dtype=torch.float32)
    torch.manual_seed(0)
    for parameter in network.parameters():
        # Large enough for attention to matter.
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.mark.parametrize("model_type", sorted(TYPES))
def test_a_document_of_a_joined_row_is_alone_where_the_facts_say_so(model_type):
    torch = pytest.importorskip("torch")
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    traits = traits_of_type(model_type)
    code = "sdpa" if "sdpa" in traits.attention_codes and model_type != "gemma2" else "eager"
    network = small_network(TYPES[model_type], code)
    first, second = DOCUMENTS
    row = {"input_ids": first + second, "seq_lengths": [len(first), len(second)]}
    batch = DataCollatorForLanguageModeling(0, padding_free=True)([row])
    with torch.no_grad():
        joined = network(**batch, use_cache=False).logits[0, len(first) :]
        alone = network(input_ids=torch.tensor([second]), use_cache=False).logits[0]
    assert torch.allclose(joined, alone, atol=1e-4) == traits.isolates_documents
