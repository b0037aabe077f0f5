from collections import Counter
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.architecture import Architecture, Block, Experts
from profiles.architecture_traits import known_model_types, traits_of_model, traits_of_type
from profiles.build_architecture import architecture
from profiles.errors import InputError, UnsupportedError
from profiles.model_catalog import all_models, find_model
from profiles.parameter_counts import parameter_counts


def arch_of(name: str) -> Architecture:
    return architecture(find_model(name))


def only_block(name: str) -> Block:
    (block,) = arch_of(name).blocks
    return block


def windows(name: str) -> dict[int | None, int]:
    counts = Counter()
    for block in arch_of(name).blocks:
        counts[block.attention.window] += block.count
    return dict(counts)


@pytest.mark.parametrize("model_type", known_model_types())
def test_every_described_type_says_what_was_read_and_has_a_model(model_type):
    assert traits_of_type(model_type).source
    assert any(model.model_type == model_type for model in all_models())


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.hf_id)
def test_blocks_add_up_to_the_layers_of_the_config(model):
    assert architecture(model).num_layers == model.num_hidden_layers + (model.num_decoder_layers or 0)


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.hf_id)
def test_projections_read_and_write_the_residual_stream(model):
    for block in architecture(model).blocks:
        attention = block.attention
        assert attention.output.out_features == model.hidden_size
        assert attention.output.in_features == attention.num_heads * attention.value_head_dim
        if attention.kv_lora_rank is None:
            assert {linear.in_features for linear in attention.inputs} == {model.hidden_size}
        assert 0 <= attention.rotary_dim <= attention.head_dim


def test_undescribed_type_is_refused_with_what_is_known():
    model = find_model("7b").model_copy(update={"model_type": "mamba"})
    with pytest.raises(UnsupportedError, match="model_type is 'mamba'") as caught:
        architecture(model)
    assert "llama" in caught.value.hint
    assert "t5" in caught.value.hint


def test_a_field_that_the_type_needs_is_asked_for_by_name():
    model = find_model("mixtral-8x7b").model_copy(update={"num_experts": None})
    with pytest.raises(InputError, match="num_experts is missing, and model_type 'mixtral' needs it"):
        architecture(model)


def test_gemma2_slides_on_every_other_layer():
    assert windows("gemma2-9b") == {4096: 21, None: 21}


def test_gemma3_sees_all_tokens_on_every_sixth_layer():
    assert windows("gemma3-1b") == {512: 22, None: 4}


def test_mistral_v01_slides_on_every_layer_and_v03_on_none():
    assert windows("mistral-7b-v0.1") == {4096: 32}
    assert windows("mistral-7b-v0.3") == {None: 32}


def test_layer_types_of_the_config_go_before_the_pattern_of_the_type():
    kinds = ("sliding_attention", *["full_attention"] * 31)
    model = find_model("mistral-7b-v0.1").model_copy(update={"layer_types": kinds})
    assert [(block.name, block.count) for block in architecture(model).blocks] == [
        ("sliding_layer", 1),
        ("full_layer", 31),
    ]


def test_smollm3_has_no_rotary_positions_on_every_fourth_layer():
    blocks = arch_of("smollm3-3b").blocks
    assert {(block.attention.rotary_dim, block.count) for block in blocks} == {(128, 27), (0, 9)}


def test_deepseek_v2_lite_has_one_dense_layer_before_its_experts():
    dense, sparse = arch_of("deepseek-v2-lite").blocks
    assert (dense.count, sparse.count) == (1, 26)
    assert not isinstance(dense.mlp, Experts)
    assert sparse.mlp.shared.intermediate_size == 2 * 1408


def test_latent_attention_has_other_widths_for_values_than_for_keys():
    attention = arch_of("deepseek-v2-lite").blocks[0].attention
    assert (attention.kv_lora_rank, attention.head_dim, attention.value_head_dim) == (512, 192, 128)


def test_olmo2_normalizes_after_attention_and_mlp_only():
    block = only_block("olmo2-7b")
    assert block.norm_before_attention is None
    assert block.norm_before_mlp is None
    assert block.norm_after_attention.name == "post_attention_layernorm"


def test_gemma2_normalizes_before_and_after():
    block = arch_of("gemma2-2b").blocks[0]
    assert len(block.norms) == 4


def test_opt_350m_normalizes_after_the_residual_and_projects_its_embedding():
    arch = arch_of("opt-350m")
    assert arch.blocks[0].norms_after_residual
    assert arch.final_norms == ()
    assert [(p.in_features, p.out_features) for p in arch.embedding_projections] == [(512, 1024), (1024, 512)]


@pytest.mark.parametrize(("name", "has_norm"), [("falcon-7b", False), ("falcon-40b", True), ("pythia-1b", True)])
def test_parallel_mlp_has_a_norm_of_its_own_or_shares_that_of_attention(name, has_norm):
    block = only_block(name)
    assert block.parallel
    assert (block.norm_before_mlp is not None) is has_norm


def test_variant_applies_to_the_models_it_names_only():
    assert not traits_of_model(find_model("stablelm-3b")).attention.qkv_bias
    assert traits_of_model(find_model("stablelm-2-1.6b")).attention.qkv_bias


def test_encoder_decoder_has_cross_attention_in_the_decoder():
    encoder, decoder = arch_of("flan-t5-base").blocks
    assert encoder.cross_attention is None
    assert decoder.cross_attention.cross


def test_old_qwen_halves_the_intermediate_size_of_its_config():
    assert only_block("qwen-7b").mlp.intermediate_size == 22016 // 2


def test_falcon_projections_are_not_of_the_class_that_bitsandbytes_quantizes():
    assert arch_of("falcon-7b").linear_class == "FalconLinear"


def test_experts_are_no_linear_modules():
    names = {linear.name for linear, _ in arch_of("mixtral-8x7b").linears()}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_tied_head_counts_once():
    arch = arch_of("gemma-2b")
    untied = replace(arch, tied=False)
    head = arch.head.num_parameters
    assert parameter_counts(arch).head == 0
    assert parameter_counts(untied).total == parameter_counts(arch).total + head


@given(st.sampled_from(all_models()))
def test_groups_add_up_to_the_total(model):
    counts = parameter_counts(architecture(model))
    assert sum(asdict(counts).values()) == counts.total


@given(st.sampled_from([model for model in all_models() if model.layer_types is None]), st.integers(1, 20))
def test_more_layers_never_cost_fewer_parameters(model, extra):
    deeper = model.model_copy(update={"num_hidden_layers": model.num_hidden_layers + extra})
    assert parameter_counts(architecture(deeper)).total > parameter_counts(architecture(model)).total
