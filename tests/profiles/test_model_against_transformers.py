from collections import Counter
from dataclasses import asdict
from importlib import import_module

import pytest

from profiles.architecture import Architecture
from profiles.architecture_traits import traits_of_type
from profiles.build_architecture import architecture
from profiles.hub_config import profile_from_config
from profiles.model import ModelProfile
from profiles.model_catalog import all_models
from profiles.parameter_counts import parameter_counts

pytestmark = pytest.mark.slow


def as_transformers_builds_it(model: ModelProfile) -> ModelProfile:
    # T5's config class ties the head whatever the config says; only loading a checkpoint unties it.
    return model.model_copy(update={"tie_word_embeddings": True}) if model.is_encoder_decoder else model


NATIVE = [as_transformers_builds_it(model) for model in all_models() if not traits_of_type(model.model_type).remote]
ONE_OF_EACH_TYPE = {model.model_type: model for model in reversed(NATIVE)}


@pytest.fixture(scope="module")
def built():
    pytest.importorskip("transformers")
    return import_module("tests.profiles.transformers_models")


@pytest.fixture(scope="module", params=NATIVE, ids=lambda model: model.hf_id)
def pair(request, built):
    return architecture(request.param), built.meta_model(request.param)


def test_parameters_of_each_group_are_those_of_the_built_model(pair, built):
    arch, theirs = pair
    assert asdict(parameter_counts(arch)) == built.group_counts(theirs)


def test_linear_modules_are_those_of_the_built_model(pair, built):
    arch, theirs = pair
    ours = Counter()
    for linear, count in arch.linears():
        ours[linear.name, linear.in_features, linear.out_features, linear.bias, arch.linear_class] += count
    assert ours == built.projections(theirs)


def norms_of(arch: Architecture) -> Counter:
    ours = Counter((norm.name, norm.num_parameters) for norm in (arch.embedding_norm, *arch.final_norms) if norm)
    for block in arch.blocks:
        for norm in block.norms:
            ours[norm.name, norm.num_parameters] += block.count
    return ours


def test_norms_are_those_of_the_built_model(pair, built):
    arch, theirs = pair
    assert norms_of(arch) == built.norms(theirs)


def test_attention_codes_are_those_of_the_class(pair):
    arch, theirs = pair
    supported = {"eager": True, "sdpa": theirs._supports_sdpa, "flash_attention_2": theirs._supports_flash_attn}
    assert arch.attention_codes == tuple(code for code, is_supported in supported.items() if is_supported)


def test_modules_kept_in_float32_are_those_of_the_class(pair):
    arch, theirs = pair
    assert set(arch.float32_modules) == theirs._keep_in_fp32_modules


def test_sliding_layers_are_those_of_the_built_config(pair):
    arch, theirs = pair
    layer_types = getattr(theirs.config.get_text_config(), "layer_types", None) or []
    sliding = sum(block.count for block in arch.blocks if block.attention.window is not None)
    if layer_types:
        assert sliding == layer_types.count("sliding_attention")


@pytest.mark.parametrize("model", NATIVE, ids=lambda model: model.hf_id)
def test_config_written_by_transformers_reads_back_as_the_catalogued_architecture(model, built):
    model = model.model_copy(update={"num_other_parameters": 0})
    read = profile_from_config(built.transformers_config(model).to_diff_dict(), model.hf_id, "test")
    assert architecture(read) == architecture(model)


def shrunk(model: ModelProfile) -> ModelProfile:
    wide = {"gptj": 64}.get(model.model_type, 32)
    small = {
        "hidden_size": 4 * wide,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_decoder_layers": 2 if model.is_encoder_decoder else None,
        "num_attention_heads": 4,
        "num_key_value_heads": min(model.num_key_value_heads, 4),
        "head_dim": wide if model.head_dim else None,
        "vocab_size": 128,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 48 if model.word_embed_proj_dim else None,
        "num_experts": 4 if model.num_experts else None,
        "num_experts_per_tok": 2 if model.num_experts else None,
        "moe_intermediate_size": 24 if model.moe_intermediate_size else None,
        "rotary_dim": 32 if model.rotary_dim else None,
    }
    return model.model_copy(update=small)


@pytest.fixture(scope="module", params=ONE_OF_EACH_TYPE.values(), ids=ONE_OF_EACH_TYPE)
def small_pair(request, built):
    import torch

    model = shrunk(request.param)
    if model.model_type == "gemma3":
        pytest.skip("its language model is that of gemma3_text")
    theirs = built.built_model(model, attn_implementation="eager", dtype=torch.bfloat16)
    return architecture(model), theirs.train()


def test_norms_keep_for_backward_what_their_traits_say(small_pair, built):
    import torch

    arch, theirs = small_pair
    norm = arch.final_norms[0]
    kept = {(False, False): {torch.bfloat16}, (True, True): {torch.float32}}
    if not norm.weight:
        kept[True, False] = {torch.float32}
    module = next(m for path, m in theirs.named_modules() if path.rpartition(".")[2] == norm.name)
    expected = kept.get((norm.upcast, norm.float32_scale), {torch.bfloat16, torch.float32})
    assert built.dtypes_saved_by_norm(module, norm.size) == expected


def test_eager_attention_computes_in_the_dtypes_that_its_traits_say(small_pair, built):
    import torch

    arch, theirs = small_pair
    tokens = torch.arange(24).reshape(2, 12)
    more = {"decoder_input_ids": tokens} if theirs.config.is_encoder_decoder else {}
    with built.EagerScores() as seen, torch.no_grad():
        theirs(input_ids=tokens, use_cache=False, **more)
    assert arch.blocks[0].attention.eager_scores == seen.kind
