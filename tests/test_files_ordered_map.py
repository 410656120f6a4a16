"""Workers, processes or threads, give the results, the order and the errors of a plain loop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.files.ordered_map import in_order, threaded
from shadowft_core.kernels.scratch import scratch

ROOT = Path(__file__).parent.parent
IMPORTS = """
import os, signal, sys, time
from shadowft_core.files.ordered_map import in_order
from shadowft_core.errors import DeltaError
"""


def run_single_threaded(body: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """Run code in a process without other threads, where workers are forked."""
    return subprocess.run(
        [sys.executable, "-c", IMPORTS + body],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )


def test_threads_keep_the_order_and_raise_the_first_error() -> None:
    def act(n: int) -> int:
        time.sleep(0.01 * (n % 3))
        if n > 40:
            raise ValueError(str(n))
        return n * n

    assert list(threaded(act, range(40))) == [n * n for n in range(40)]
    with pytest.raises(ValueError, match=r"^41$"):
        list(threaded(act, range(60)))


def test_a_process_with_other_threads_is_not_forked() -> None:
    with_thread = "import threading; threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
    count = "print(len({fact for fact, _ in in_order(lambda n: (os.getpid(), b''), range(20))} | {os.getpid()}))"
    assert run_single_threaded(with_thread + count).stdout == "1\n"
    assert int(run_single_threaded(count).stdout) > 1


def test_processes_keep_the_order_whatever_the_sizes() -> None:
    done = run_single_threaded(
        """
def act(n):
    time.sleep(0.002 * (n % 5))
    return (n, os.getpid()), bytes([n % 251]) * (n % 7 * 100_000)
results = [(fact[0], bytes(data), fact[1]) for fact, data in in_order(act, range(200))]
assert [n for n, _, _ in results] == list(range(200))
assert all(data == bytes([n % 251]) * (n % 7 * 100_000) for n, data, _ in results)
assert len({pid for _, _, pid in results}) == 2
"""
    )
    assert done.returncode == 0, done.stderr


def test_an_error_keeps_its_class_and_its_place_in_the_order() -> None:
    done = run_single_threaded(
        """
def act(n):
    if n == 7: raise DeltaError("tensor seven is damaged")
    if n == 8: raise OSError(28, "No space left on device")
    return n, b""
seen = []
try:
    for n, _ in in_order(act, range(30)): seen.append(n)
except DeltaError as error:
    print(seen == list(range(7)), error)
"""
    )
    assert done.stdout == "True tensor seven is damaged\n", done.stderr


def test_a_killed_worker_is_an_error_and_not_a_hang() -> None:
    done = run_single_threaded(
        """
def act(n):
    if n == 5: os.kill(os.getpid(), signal.SIGKILL)
    return n, b""
list(in_order(act, range(100)))
"""
    )
    assert done.returncode == 1
    assert "ShadowError: a worker process ended with -9" in done.stderr


def test_workers_end_with_their_parent() -> None:
    body = """
def act(n):
    os.write(1, b"%d\\n" % os.getpid())  # in one piece: two workers write here
    time.sleep(20)
    return n, b""
list(in_order(act, range(2)))
"""
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTS + body],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    ) as parent:
        assert parent.stdout
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{worker}").exists() and running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_one_item_or_none_works() -> None:
    assert list(in_order(lambda n: (n, b"x"), [3])) == [(3, b"x")]
    assert list(in_order(lambda n: (n, b"x"), [])) == []


def test_threads_copy_results_that_the_next_call_overwrites() -> None:
    def act(n: int) -> tuple[int, memoryview]:
        array = scratch.array("overwritten", 1000, np.uint8)
        array.fill(n)
        return n, array.data

    assert [bytes(data) for _, data in in_order(act, [*range(50)])] == [bytes([n]) * 1000 for n in range(50)]
