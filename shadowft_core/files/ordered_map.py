"""Results in the order of the work, from two cores: forked processes where that is safe, else threads."""

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

import numpy as np

from shadowft_core.errors import ShadowError
from shadowft_core.kernels.scratch import scratch

T = TypeVar("T")
R = TypeVar("R")
Result = tuple[R, bytes | memoryview]
WORKERS = 2
AHEAD = 1 << 20  # bytes
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


def in_order(act: Callable[[T], Result[R]], work: Sequence[T]) -> Iterator[Result[R]]:
    """Yield `act(item)`, a fact and some bytes, for every item, in their order; the next one may overwrite the bytes.

    An act may return a view of memory that its next call overwrites.

    Numpy's short calls let two threads of one interpreter wait for each other a quarter of the time, so every worker is
    a process of its own, forked here: of an act only what it returns comes back, and facts must be small. A process
    that has other threads is not forked, for a lock that they hold would stay locked: threads do the work then.
    Little waits in memory: a worker goes on when its results were taken, but for what a pipe holds (`AHEAD`).
    The first error in the order of the work is raised and ends it; ShadowError when a worker was killed.
    """
    if len(work) > 1 and _alone():
        return _forked(act, work)

    def kept(item: T) -> Result[R]:
        fact, data = act(item)
        return fact, bytes(data)  # the thread may overwrite them before they are asked for

    return threaded(kept, work)


def threaded(act: Callable[[T], R], work: Iterable[T], threads: int = WORKERS) -> Iterator[R]:
    """As `in_order`, in threads, for what waits for a disk or a network; work is drawn as it is done."""
    pending: deque[Future[R]] = deque()
    failed = Event()

    def unless_failed(item: T) -> R:
        if failed.is_set():  # what waits in line would spend its whole patience on a store that is gone
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


def _alone() -> bool:
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # no Linux
        return False


def _forked(act: Callable[[T], Result[R]], work: Sequence[T]) -> Iterator[Result[R]]:
    taken, given = os.pipe()  # holds one number, that of the next item: who reads it writes the one after it
    os.write(given, bytes(8))
    parent = os.getpid()
    workers: dict[Connection[Any, Any], int] = {}
    try:
        for _ in range(WORKERS):
            ours, theirs = Pipe(duplex=False)
            with suppress(OSError):  # a user may have no more; then workers wait more
                fcntl.fcntl(theirs.fileno(), fcntl.F_SETPIPE_SZ, AHEAD)
            if (child := os.fork()) == 0:
                for pipe in (ours, *workers):
                    pipe.close()  # so that a worker's pipe breaks when the parent is gone
                _work(act, work, taken, given, theirs, parent)
            theirs.close()
            workers[ours] = child
        heads: dict[
            int, tuple[Connection[Any, Any], R, int, Exception | None]
        ] = {}  # their bytes are still in the pipe
        for number in range(len(work)):
            while number not in heads:
                waiting = {head[0] for head in heads.values()}
                ready, _, _ = select([pipe for pipe in workers if pipe not in waiting], [], [])
                for pipe in ready:
                    try:
                        found, fact, length, error = pipe.recv()
                    except EOFError:
                        _require_done(workers.pop(pipe))
                        continue
                    heads[found] = pipe, fact, length, error
            pipe, fact, length, error = heads.pop(number)
            if error is not None:
                raise error
            data = scratch.array("result", length, np.uint8).data
            _read_fully(pipe, data)
            yield fact, data
    finally:
        os.close(taken)
        os.close(given)
        for pipe, child in workers.items():
            pipe.close()
            os.kill(child, signal.SIGKILL)  # after the last result there is nothing left to kill
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
            f"a worker process ended with {code} (-9: killed, mostly for want of memory) before its work was done; "
            "free some memory and run it again"
        )


def _work(
    act: Callable[[T], Result[R]],
    work: Sequence[T],
    taken: int,
    given: int,
    out: "Connection[Any, Any]",
    parent: int,
) -> NoReturn:
    """What a forked worker does; it never returns to what its parent was about."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
        _die_with(parent)
        while (number := int.from_bytes(os.read(taken, 8), "little")) < len(work):
            os.write(given, (number + 1).to_bytes(8, "little"))
            try:
                fact, data = act(work[number])
            except Exception as error:
                out.send((number, None, 0, error))
                continue
            view = memoryview(data).cast("B")
            out.send((number, fact, len(view), None))
            while view:
                view = view[os.write(out.fileno(), view) :]
        os.write(given, number.to_bytes(8, "little"))
        status = 0
    except OSError:  # the parent is gone
        pass
    finally:
        os._exit(status)


def _die_with(parent: int) -> None:
    """Have the kernel kill this worker when its parent dies, so that it does not write on behalf of a dead run."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
