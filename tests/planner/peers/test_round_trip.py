"""What is written for a peer and read again is the same step, for every knob that the peer can say."""

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from planner.peers.peer import PEERS, writable_peers
from planner.step.resolve import resolve_step
from profiles.gpu_catalog import find_gpu
from profiles.model_catalog import find_model
from tests.planner.peers.run_configs import MODEL, read_back, run_configs

SELDOM = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])


@pytest.mark.parametrize("peer", writable_peers())
@SELDOM
@given(draw=st.data())
def test_a_run_comes_back_as_the_same_step(peer, draw):
    config = draw.draw(run_configs(peer))
    assume(config is not None)
    assume(PEERS[peer].refusal(config) is None)
    gpu, model = find_gpu(config.gpu), find_model(MODEL)
    file = read_back(config, peer, gpu)
    # The steps of other objectives are described for TRL's trainers only.
    trainer = file.traits if config.objective == "sft" else "trl"
    assert resolve_step(file.config, model, gpu, trainer) == resolve_step(config, model, gpu, trainer)
    assert {account.status for account in file.accounts} <= {"understood", "no effect", "off"}
