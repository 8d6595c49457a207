from __future__ import annotations

import os
import signal
import threading

import pytest

from bilevel.runs.stopping import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_request_and_its_handler_goes_with_the_run(number: int, code: int, capsys) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert stop.exit_code == code
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err == "\nstopping after this step; once more to end at once\n"


def test_in_a_thread_signals_stay_with_the_main_one() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter() -> None:
        with StopRequest() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, before)]
