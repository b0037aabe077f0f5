import os
import signal

import pytest

from trainer.interruption import Interrupted, Interruption, handling


def test_a_signal_in_a_step_is_remembered_and_the_second_one_stops(capsys):
    interruption = Interruption()
    interruption.in_step = True
    with handling(interruption.receive):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.signal_number == signal.SIGTERM
        assert "SIGTERM: finishing this step" in capsys.readouterr().err
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.exit_code == 143


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
