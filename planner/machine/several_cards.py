"""What stands between the cards of this machine and a run that they share."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.machine.finding import Finding
from planner.units import GIB, format_bytes
from profiles.gpu import GpuProfile

PROBE_SECONDS = 90
# Docker gives a container 64 MiB; NCCL takes a few for each pair of cards that meet there.
ROOMY_SHARED_MEMORY_BYTES = GIB
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # no file of ours: what NCCL uses

# Sums that arrive are the proof; where cards cannot reach each other as they say, NCCL waits for ever.
NCCL_PROBE = """
import json, torch

num_cards = torch.cuda.device_count()
apart = [(a, b) for a in range(num_cards) for b in range(a) if not torch.cuda.can_device_access_peer(a, b)]
ones = [torch.ones(1024, device=f"cuda:{card}") for card in range(num_cards)]
torch.cuda.nccl.all_reduce(ones)
print(json.dumps({
    "num_cards": num_cards,
    "version": ".".join(map(str, torch.cuda.nccl.version())),
    "num_pairs_apart": len(apart),
    "sums": all(bool((tensor == num_cards).all()) for tensor in ones),
}))
"""


@dataclass(frozen=True, slots=True)
class Sums:
    """What NCCL's sum over all cards came to, how many cards it saw, and how many pairs cannot reach each other."""

    num_cards: int
    version: str
    num_pairs_apart: int
    sums: bool


def several_cards(cards: Sequence[GpuProfile]) -> list[Finding]:
    """Findings on `cards` together; none for one."""
    if len(cards) < 2:
        return []
    return [alike(cards), together(*sum_over_cards()), shared_memory()]


def alike(cards: Sequence[GpuProfile]) -> Finding:
    """Whether the cards are of one kind: the smallest and slowest sets the pace, since all get the same share."""
    names = sorted({card.name for card in cards})
    if len(names) == 1:
        return Finding("cards", "ok", f"{len(cards)} x {names[0]}")
    message = f"{', '.join(names)} in one machine: a run over all has the memory and the pace of the least of them"
    return Finding("cards", "warning", message, "export CUDA_VISIBLE_DEVICES=NUMBERS_OF_ALIKE_CARDS")


def sum_over_cards() -> tuple[Sums | None, str]:
    """A sum over all cards by NCCL in a process of its own; None and the reason if there is none."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", NCCL_PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        return None, f"did not come within {PROBE_SECONDS} s"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        return None, f"failed: {lines[-1] if lines else f'exit code {error.returncode}'}"
    return Sums(**json.loads(run.stdout)), ""


def together(sums: Sums | None, reason: str) -> Finding:
    """Whether NCCL sums over the cards, and on which way."""
    if sums is None:
        message = f"a sum of NCCL over the cards {reason}"
        return Finding("NCCL", "problem", message, "NCCL_DEBUG=INFO fitune doctor; then try NCCL_P2P_DISABLE=1")
    if not sums.sums:
        message = "NCCL's sum over the cards is wrong: they do not reach each other's memory as they say"
        return Finding("NCCL", "problem", message, "export NCCL_P2P_DISABLE=1")
    if sums.num_pairs_apart:
        message = (
            f"NCCL {sums.version} sums over {sums.num_cards} cards, {sums.num_pairs_apart} pairs of them through the "
            "host's memory: fsdp and zero3 will be slow"
        )
        return Finding("NCCL", "warning", message, "nvidia-smi topo -p2p r")
    return Finding("NCCL", "ok", f"NCCL {sums.version} sums over {sums.num_cards} cards, directly")


def shared_memory() -> Finding:
    """The memory that processes share, where NCCL's meet if cards cannot."""
    stat = os.statvfs(SHARED_MEMORY)
    size = stat.f_frsize * stat.f_blocks
    message = f"{format_bytes(size)} in {SHARED_MEMORY}"
    if size < ROOMY_SHARED_MEMORY_BYTES:
        return Finding("shared memory", "warning", f"{message}; NCCL may run out of it", "docker run --shm-size 1g")
    return Finding("shared memory", "ok", message)
