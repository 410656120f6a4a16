"""SIGTERM and SIGINT in a block: an error, once; after the block all is as before."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from shadowft_core.errors import StoppedError
from shadowft_core.files.stopping import SIGNALS, stoppable


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that arrive at the handlers of before."""
    found: list[int] = []
    former = {number: signal.signal(number, lambda number, _: found.append(number)) for number in SIGNALS}
    yield found
    for number, handler in former.items():
        signal.signal(number, handler)


def wait_for(received: list[int], count: int) -> None:
    deadline = time.monotonic() + 10
    while len(received) < count and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_an_error_and_the_second_does_what_it_did_before(number: int, received: list[int]) -> None:
    @stoppable("stopped by {signal}")
    def work() -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), number)
            wait_for(received, 1)

    with pytest.raises(StoppedError, match=f"^stopped by {signal.Signals(number).name}$") as stopped:
        work()
    assert received == [number]
    assert stopped.value.exit_code == 128 + number
    os.kill(os.getpid(), number)
    wait_for(received, 2)
    assert received == [number, number]


def test_a_block_that_ends_by_itself_leaves_the_handlers_as_they_were(received: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with stoppable("stopped by {signal}"):
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(KeyboardInterrupt), stoppable("stopped by {signal}"):
        raise KeyboardInterrupt  # of another cause
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_in_another_thread_it_does_nothing() -> None:
    def work() -> object:
        with stoppable("stopped by {signal}"):
            return signal.getsignal(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == signal.getsignal(signal.SIGTERM)
