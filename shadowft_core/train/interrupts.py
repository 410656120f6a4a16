"""SIGTERM and SIGINT during the steps: the first asks the training to stop, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """The signal that asked the training to stop; `number` is None until one came."""

    number: int | None = None

    @contextmanager
    def listening(self, alone: bool = True) -> Iterator[None]:
        """Listen to both signals in the block. Python delivers signals to the main thread; others do not listen.

        If this is one of several processes, only the first counts: it may get the same one from each process above it.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.getsignal(number) for number in SIGNALS}

        def receive(number: int, _: FrameType | None) -> None:
            if self.number is not None:
                return
            for one, handler in former.items() if alone else ():
                signal.signal(one, handler)  # the next one does what it did before
            self.number = number
            name, second = signal.Signals(number).name, "; a second signal ends it at once" if alone else ""
            os.write(2, f"train: {name}: stopping after this micro-batch and saving{second}\n".encode())

        try:
            for number in SIGNALS:
                signal.signal(number, receive)
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
