"""SIGTERM and SIGINT end a block with an error that says what is kept and what to do."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shadowft_core.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stoppable(saying: str) -> Iterator[None]:
    """Turn the first of both signals in the block into a StoppedError; the second does what it did before.

    `saying` is the message, with {signal} where the name of the signal belongs.

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
        raise StoppedError(saying.format(signal=signal.Signals(received[0]).name), received[0]) from None
    finally:
        restore()
