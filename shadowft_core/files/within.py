"""Calls a function of a library that nothing can interrupt, and waits for it within a limit."""

import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_WAIT = 0.2  # seconds between two looks at the clocks
_own = threading.local()


class _Worker(threading.Thread):
    """Makes the calls of another thread. As a daemon it does not keep the process alive when it is given up."""

    def __init__(self) -> None:
        super().__init__(name="within", daemon=True)
        self.process = os.getpid()
        self.calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()
        self.results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        while True:
            call = self.calls.get()
            try:
                self.results.put((call(), None))
            except BaseException as error:
                self.results.put((None, error))
            del call


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; TimeoutError after more than these seconds, both by the clock and of processors.

    So a process that was stopped meanwhile loses nothing. After a TimeoutError the call goes on in its thread: use it
    where the process gives up then. The call must release the interpreter's lock while it is busy.
    """
    worker: _Worker | None = getattr(_own, "worker", None)
    if worker is None or worker.process != os.getpid():  # a fork has no threads
        worker = _Worker()
        worker.start()
    _own.worker = None  # an interrupted wait leaves a result behind, which no other call may take
    begun, used = time.monotonic(), time.process_time()
    worker.calls.put(call)
    while True:
        try:
            value, error = worker.results.get(timeout=_WAIT)
            break
        except Empty:
            if min(time.monotonic() - begun, time.process_time() - used) > seconds:
                raise TimeoutError from None
    _own.worker = worker
    if error is not None:
        raise error
    return value  # type: ignore[no-any-return]
