import pytest

from planner.speed.work import AttentionGroup, count_work
from profiles.build_architecture import architecture
from profiles.model_catalog import all_models, find_model

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_llama_7b_multiplies_its_6_5_billion_layer_weights():
    work = count_work(find_model("meta-llama/Llama-2-7b-hf"), ())
    assert work.active_weights == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert work.head_weights == 32000 * 4096


def test_a_token_meets_2_of_8_experts():
    work = count_work(find_model("mistralai/Mixtral-8x7B-v0.1"), ())
    experts = 32 * 8 * 3 * 4096 * 14336
    assert work.weights - work.active_weights == experts * 6 // 8


def test_adapter_weights_follow_from_rank_and_widths():
    # peft prints 39,976,960 trainable parameters for r=16 on all Linear modules of Llama-2-7B.
    assert count_work(find_model("meta-llama/Llama-2-7b-hf"), ALL).adapter_width * 16 == 39_976_960


def test_query_and_value_adapters_are_fewer():
    # 4,194,304 at r=8: the number that peft prints for Llama-7B with its default target modules.
    assert count_work(find_model("huggyllama/llama-7b"), ("q_proj", "v_proj")).adapter_width * 8 == 4_194_304


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.hf_id)
def test_the_work_of_every_model_is_counted(model):
    work = count_work(model, ())
    assert 0 < work.linear_weights <= work.weights <= work.num_parameters
    assert 0 < work.active_weights <= work.weights
    assert work.num_layers == architecture(model).num_layers
    assert work.float32_norms + work.plain_norms > 0


@pytest.mark.parametrize(
    ("window", "causal", "skip_masked", "keys"),
    [
        (None, True, True, 50.5),
        (None, True, False, 100),
        (None, False, True, 100),
        (1, True, True, 1),
        (500, True, True, 50.5),
    ],
)
def test_a_query_meets_the_keys_that_its_mask_leaves(window, causal, skip_masked, keys):
    assert AttentionGroup(1, 1, window, causal).keys(100, skip_masked) == keys


def test_a_window_counts_like_the_sum_over_queries():
    visible = sum(min(query + 1, 30) for query in range(100))
    assert AttentionGroup(1, 1, 30, True).keys(100, skip_masked=True) == pytest.approx(visible / 100)
