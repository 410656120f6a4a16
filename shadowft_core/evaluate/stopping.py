"""SIGTERM and SIGINT during an evaluation: it ends at once, nothing is written, the answers so far are kept."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shadowft_core.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first of both signals in the block into a StoppedError; the second does what it did before.

    Python delivers signals to the main thread; in others this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    received: list[int] = []

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def receive(number: int, _: FrameType | None) -> None:
        restore()
        received.append(number)
        raise KeyboardInterrupt  # unlike an Exception, no library takes it for a failure to repeat or report

    try:
        for number in SIGNALS:
            signal.signal(number, receive)
        yield
    except KeyboardInterrupt:
        if not received:
            raise
        name = signal.Signals(received[0]).name
        raise StoppedError(
            f"evaluation stopped by {name}: nothing was written, the answers so far are kept; run the same command "
            "again to go on",
            received[0],
        ) from None
    finally:
        restore()
