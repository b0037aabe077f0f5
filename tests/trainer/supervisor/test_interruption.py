import os
import signal

import pytest

import trainer.supervisor.interruption
from trainer.supervisor.interruption import Interrupted, Interruption, handling


@pytest.fixture
def clock(monkeypatch):
    """A time that passes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(trainer.supervisor.interruption.time, "monotonic", lambda: now[0])
    return now


def test_a_signal_in_a_step_is_remembered_and_the_second_one_stops(capsys, clock):
    interruption = Interruption()
    interruption.in_step = True
    with handling(interruption.receive):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal_number == signal.SIGTERM
        assert "SIGTERM: finishing this step" in capsys.readouterr().err
        clock[0] += 1.1
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_code == 143


def test_a_signal_that_comes_by_several_ways_at_once_is_one(clock):
    interruption = Interruption()
    interruption.in_step = True
    with handling(interruption.receive):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
            clock[0] += 0.2
    assert interruption.signal_number == signal.SIGTERM


def test_the_signal_of_a_scheduler_never_stops_at_once(clock):
    interruption = Interruption()
    interruption.in_step = True
    with handling(interruption.receive):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            clock[0] += 60
    assert interruption.signal_number == signal.SIGUSR1


def test_a_signal_outside_a_step_stops_at_once():
    with pytest.raises(Interrupted) as stop, handling(Interruption().receive):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.value.exit_code == 130


def test_the_old_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with handling(Interruption().receive):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(Interruption().receive):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
