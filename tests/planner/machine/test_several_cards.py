import subprocess
import sys

import pytest

from planner.machine import several_cards as subject
from planner.machine.several_cards import Sums, alike, several_cards, shared_memory, sum_over_cards, together
from profiles.gpu_catalog import find_gpu

T4, V100 = find_gpu("t4"), find_gpu("v100")


def test_one_card_alone_is_not_asked_about_others():
    assert several_cards([T4]) == []


def test_cards_of_two_kinds_are_a_warning():
    assert alike([T4, T4]).message == "2 x T4"
    finding = alike([T4, V100])
    assert finding.status == "warning"
    assert finding.message.startswith("T4, V100-SXM2-16GB in one machine: a run over all has the memory and the pace")


@pytest.mark.parametrize(
    ("sums", "status", "words"),
    [
        (Sums(2, "2.28.3", 0, True), "ok", "NCCL 2.28.3 sums over 2 cards, directly"),
        (Sums(4, "2.28.3", 6, True), "warning", "6 pairs of them through the host's memory"),
        (Sums(2, "2.28.3", 0, False), "problem", "NCCL's sum over the cards is wrong"),
    ],
)
def test_a_sum_over_the_cards_shows_how_they_reach_each_other(sums, status, words):
    finding = together(sums, "")
    assert finding.status == status
    assert words in finding.message


def test_a_sum_that_does_not_come_is_a_problem(monkeypatch):
    monkeypatch.setattr(subject, "NCCL_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(subject, "PROBE_SECONDS", 0.2)
    finding = together(*sum_over_cards())
    assert (finding.status, finding.message) == (
        "problem",
        "a sum of NCCL over the cards did not come within 0.2 s",
    )
    assert "NCCL_P2P_DISABLE=1" in finding.cure


def test_a_sum_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(subject, "NCCL_PROBE", "raise SystemExit('unhandled system error')")
    assert together(*sum_over_cards()).message == "a sum of NCCL over the cards failed: unhandled system error"


@pytest.mark.slow
def test_the_probe_asks_torch_for_what_it_has():
    import torch

    names = ("can_device_access_peer", "device_count")
    assert all(callable(getattr(torch.cuda, name)) for name in names)
    assert callable(torch.cuda.nccl.all_reduce)
    assert callable(torch.cuda.nccl.version)
    compiled = subprocess.run(
        [sys.executable, "-c", f"compile({subject.NCCL_PROBE!r}, 'probe', 'exec')"], check=False, capture_output=True
    )
    assert compiled.returncode == 0, compiled.stderr


def test_little_shared_memory_is_a_warning(monkeypatch):
    assert shared_memory().subject == "shared memory"
    monkeypatch.setattr(subject, "ROOMY_SHARED_MEMORY_BYTES", 1 << 60)
    assert shared_memory().status == "warning"
