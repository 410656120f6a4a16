"""Ordered parallel map: forked worker processes where that is safe, else threads."""

import ctypes
import fcntl
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from select import select
from threading import Event
from typing import Any, NoReturn, TypeVar

from shadowft_core.errors import ShadowError

T = TypeVar("T")
R = TypeVar("R")
Result = tuple[R, bytes | memoryview]
WORKERS = 2
PIPE_SIZE = 1 << 20  # bytes of a result that may wait in a worker's pipe
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def in_order(act: Callable[[T], Result[R]], work: Sequence[T]) -> Iterator[Result[R]]:
    """Yield `act(item)`, a small picklable fact and some bytes, for every item in order.

    Yielded bytes are valid until the next result; `act` may return a view of memory that its next call overwrites.

    Workers are forked processes because two threads spend a quarter of the time waiting for each other in numpy's short
    calls. Only the result of `act` reaches the parent; side effects do not. A process that has other threads is not
    forked, because a lock they hold would stay locked in the child; threads do the work instead. Memory is bounded: a
    worker waits until its result is read, except for `PIPE_SIZE` bytes in its pipe.
    Raises the first error in the order of the work, and ShadowError when a worker is killed.
    """
    if len(work) > 1 and _single_threaded():
        return _forked(act, work)

    def act_and_copy(item: T) -> Result[R]:
        fact, data = act(item)
        return fact, bytes(data)  # the thread may overwrite its memory before the result is read

    return threaded(act_and_copy, work)


def threaded(act: Callable[[T], R], work: Iterable[T], threads: int = WORKERS) -> Iterator[R]:
    """Yield `act(item)` for every item in order, from a pool of threads; for work that waits for a disk or a network.

    Items are drawn from `work` as results are read. Raises the first error in the order of the work; queued items then
    do not start.
    """
    pending: deque[Future[R]] = deque()
    failed = Event()

    def unless_failed(item: T) -> R:
        if failed.is_set():  # a queued item would use up all its retries on a store that is gone
            raise CancelledError
        try:
            return act(item)
        except BaseException:
            failed.set()
            raise

    pool = ThreadPoolExecutor(threads)
    try:
        for item in work:
            pending.append(pool.submit(unless_failed, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _single_threaded() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # not Linux
        return False


def _forked(act: Callable[[T], Result[R]], work: Sequence[T]) -> Iterator[Result[R]]:
    import numpy as np  # here, because programs that read only their params import this room

    from shadowft_core.kernels.scratch import scratch

    next_out, next_in = os.pipe()  # holds the number of the next item; a worker that reads it writes that number + 1
    os.write(next_in, bytes(8))
    parent = os.getpid()
    workers: dict[Connection[Any, Any], int] = {}
    try:
        for _ in range(WORKERS):
            results, sender = Pipe(duplex=False)
            with suppress(OSError):  # beyond the user's limit for pipes: workers wait more often
                fcntl.fcntl(sender.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)
            if (child := os.fork()) == 0:
                for pipe in (results, *workers):
                    pipe.close()  # so that writing to a pipe fails once the parent is gone
                _work(act, work, next_out, next_in, sender, parent)
            sender.close()
            workers[results] = child
        # Received heads of results, by item; their bytes are still in the pipe.
        heads: dict[int, tuple[Connection[Any, Any], R, int, Exception | None]] = {}
        for number in range(len(work)):
            while number not in heads:
                waiting = {head[0] for head in heads.values()}
                ready, _, _ = select([pipe for pipe in workers if pipe not in waiting], [], [])
                for pipe in ready:
                    try:
                        item, fact, length, error = pipe.recv()
                    except EOFError:
                        _require_done(workers.pop(pipe))
                        continue
                    heads[item] = pipe, fact, length, error
            pipe, fact, length, error = heads.pop(number)
            if error is not None:
                raise error
            data = scratch.array("result", length, np.uint8).data
            _read_fully(pipe, data)
            yield fact, data
    finally:
        os.close(next_out)
        os.close(next_in)
        for pipe, child in workers.items():
            pipe.close()
            os.kill(child, signal.SIGKILL)  # no effect after the last result: the worker has ended
            os.waitpid(child, 0)


def _read_fully(pipe: "Connection[Any, Any]", data: memoryview) -> None:
    done = 0
    while done < len(data):
        if not (count := os.readv(pipe.fileno(), [data[done:]])):
            raise ShadowError(f"a worker process ended after {done} of {len(data)} bytes of its result; run it again")
        done += count


def _require_done(child: int) -> None:
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise ShadowError(
            f"a worker process ended with {code} (-9: killed, usually for lack of memory) before it had finished; "
            "free some memory and run it again"
        )


def _work(
    act: Callable[[T], Result[R]],
    work: Sequence[T],
    next_out: int,
    next_in: int,
    out: "Connection[Any, Any]",
    parent: int,
) -> NoReturn:
    """Run a forked worker until no item is left; it exits here and never returns into the parent's code."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent kills its workers
        _die_with(parent)
        while (number := int.from_bytes(os.read(next_out, 8), "little")) < len(work):
            os.write(next_in, (number + 1).to_bytes(8, "little"))
            try:
                fact, data = act(work[number])
            except Exception as error:
                out.send((number, None, 0, error))
                continue
            view = memoryview(data).cast("B")
            out.send((number, fact, len(view), None))
            while view:
                view = view[os.write(out.fileno(), view) :]
        os.write(next_in, number.to_bytes(8, "little"))
        status = 0
    except OSError:  # the parent is gone
        pass
    finally:
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the kernel kill this worker when its parent dies, so that it cannot write for a run that has ended."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
