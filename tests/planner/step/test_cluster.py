"""Questions about several cards and machines, to answers that are known."""

import json

import pytest

import planner
from planner.asking.question import find_card
from planner.cli import main
from planner.search.planning import Plan
from profiles import detect
from profiles.detect import DetectedGpu
from profiles.gpu_catalog import find_gpu

FULL = {"method": "full", "max_length": 2048}


def layout(plan: Plan) -> tuple[str, str]:
    assert plan.config is not None
    assert plan.config.parallel is not None
    return plan.config.parallel.strategy, plan.config.parallel.offload


def test_70b_with_qlora_on_two_cards_of_24_gb_takes_fsdp_and_offload():
    """As Answer.AI showed on two RTX 3090 (fsdp_qlora benchmarks_03_2024.md): 14.92 GiB of them."""
    question = {"num_gpus": 2, "method": "qlora", "max_length": 2048, "knobs": {"per_device_train_batch_size": 2}}
    answer = planner.can("70b", "rtx 3090", **question)
    assert answer.verdict == "fits"
    assert layout(answer)[0] == "fsdp"
    offloaded = planner.can(
        "70b", "rtx 3090", **{**question, "knobs": {"parallel": {"strategy": "fsdp", "offload": "parameters"}}}
    )
    assert layout(offloaded) == ("fsdp", "parameters")
    assert planner.can("70b", "rtx 3090", method="qlora", max_length=2048).verdict == "no"


def test_70b_in_full_does_not_fit_eight_a100_and_takes_two_machines():
    """16 bytes a parameter are 1,103 GB, and eight cards have 640."""
    knobs = {"parallel": {"strategy": "fsdp", "offload": "none"}}
    answer = planner.can("70b", "a100-80gb", num_gpus=8, **FULL, knobs=knobs)
    assert answer.verdict == "no"
    more = next(change for change in answer.nearest if "machines" in change.what)
    assert more.what.startswith("16 x A100-SXM4-80GB in 2 machines (about ")
    assert more.candidate.verdict == "fits"


def test_7b_in_full_with_zero3_fits_four_v100_of_32_gb():
    """16 bytes a parameter are 27 GB on each of four cards; and float16, which is what they compute in."""
    knobs = {"parallel": {"strategy": "zero3", "offload": "none"}}
    answer = planner.can("7b", "v100-32gb", num_gpus=4, **FULL, knobs=knobs)
    assert answer.verdict in ("fits", "tight")
    assert answer.config is not None
    assert (answer.config.dtype, answer.config.mixed_precision) == ("float32", "fp16")
    assert layout(answer) == ("zero3", "none")
    states = sum(
        c.bytes for c in answer.estimate.components if c.name in ("weights", "float32 copies", "optimizer states")
    )
    assert states == pytest.approx(6_738_415_616 * 14 / 4, rel=0.01)
    assert planner.can("7b", "v100-32gb", num_gpus=2, **FULL, knobs=knobs).verdict == "no"


def test_the_simplest_layout_that_fits_is_taken():
    assert layout(planner.can("7b", "a100-80gb", num_gpus=4, method="lora")) == ("ddp", "none")
    assert layout(planner.can("7b", "a100-80gb", num_gpus=8, **FULL)) == ("fsdp", "none")
    assert layout(planner.can("7b", "rtx 3090", num_gpus=2, **FULL)) == ("fsdp", "parameters")


def test_a_machine_of_a_cloud_stands_for_its_cards():
    answer = planner.can("7b", "p4d.24xlarge", num_nodes=2, method="lora", rows=10_000)
    assert answer.config is not None
    assert (answer.config.gpu, answer.config.num_gpus, answer.config.num_nodes) == ("A100-SXM4-40GB", 8, 2)
    assert answer.config.effective_batch_size == 16
    assert answer.cost is not None
    assert answer.cost.usd == pytest.approx(2 * 21.957642 * answer.cost.seconds / 3600)
    fewer = planner.can("7b", "p4d.24xlarge", num_gpus=2, method="lora")
    assert fewer.config is not None
    assert fewer.config.world_size == 2


def test_what_waits_in_host_memory_has_to_fit_there():
    knobs = {"parallel": {"strategy": "fsdp", "offload": "parameters"}}
    answer = planner.can("70b", "p3.8xlarge", **FULL, knobs=knobs)
    assert answer.verdict == "no"
    assert answer.shortfall is not None
    assert answer.shortfall.startswith("what waits in host memory takes 1.0 TiB of each machine")


def test_unlike_cards_share_a_run_as_the_smallest_of_them_can(monkeypatch: pytest.MonkeyPatch):
    here = [
        DetectedGpu(
            index=index, name=name, uuid=f"GPU-{index}", profile=find_gpu(name), total_bytes=free, free_bytes=free,
            processes=(), driver_version="1", display_active=False, is_mig_instance=False,
        )
        for index, (name, free) in enumerate([("RTX 3090", 24 * 2**30), ("RTX 3060 12GB", 11 * 2**30)])
    ]  # fmt: skip
    monkeypatch.setattr(detect, "detect_usable_gpus", lambda: tuple(here))
    card = find_card("auto")
    assert card.gpu is not None
    assert (card.gpu.name, card.free_bytes, card.cluster.num_gpus) == ("RTX 3060 12GB", 11 * 2**30, 2)
    monkeypatch.setattr(detect, "detect_usable_gpus", lambda: tuple(here[:1]))
    assert find_card("auto").cluster.num_gpus == 1


def test_a_batch_nobody_asked_for_grows_to_what_the_cards_can_share():
    for num_gpus, size in ((3, 18), (4, 16), (64, 64)):
        answer = planner.can("7b", "a100-80gb", num_gpus=num_gpus, method="lora")
        assert answer.config is not None
        assert answer.config.effective_batch_size == size


def test_the_answer_says_how_the_cards_share_the_run(capsys: pytest.CaptureFixture[str]):
    assert main(["can", "8b", "--gpu", "a100-80gb", "--num-gpus", "8", "--method", "full"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "fits 8 A100-SXM4-80GB with full fine-tuning" in text
    assert "8 cards, weights, gradients and states shared out (FSDP)" in text
    assert "host memory about" in text


def test_json_has_the_layout_and_what_the_host_needs(capsys: pytest.CaptureFixture[str]):
    main(["estimate", "8b", "--gpu", "g5.12xlarge", "--set", "parallel.strategy=fsdp", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["num_gpus"] == 4
    assert document["config"]["parallel"]["strategy"] == "fsdp"
    # One process of a machine reads all weights in 16 bits.
    assert document["host_bytes"] == pytest.approx(2 * 8_030_261_248, rel=0.01)


def test_planning_takes_as_long_for_a_thousand_cards_as_for_eight(benchmark_seconds):
    eight = benchmark_seconds(lambda: planner.can("405b", "h100-80gb", num_gpus=8, num_nodes=8, method="full"))
    thousand = benchmark_seconds(lambda: planner.can("405b", "h100-80gb", num_gpus=8, num_nodes=128, method="full"))
    assert thousand < 2
    assert thousand < 3 * eight + 0.5


@pytest.fixture
def benchmark_seconds():
    from time import perf_counter

    def seconds(question):
        begin = perf_counter()
        question()
        return perf_counter() - begin

    return seconds


def test_explain_says_what_another_layout_would_change(capsys: pytest.CaptureFixture[str]):
    main(["estimate", "8b", "--gpu", "a100-80gb", "--num-gpus", "8", "--explain", "--json"])
    changes = {one["change"]: one["bytes"] for one in json.loads(capsys.readouterr().out)["knobs"]}
    assert changes["strategy fsdp, all in host memory"] < changes["strategy fsdp"] < 0
