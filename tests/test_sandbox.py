"""Untrusted programs: none passes, harms, hangs or leaves anything behind."""

import ast
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shadowft_core.sandbox import Limits, Program, Verdict, plain, run
from shadowft_core.sandbox.running import LONGEST_SOURCE
from tests.fixtures.hostile import BREAKS_OUT, HOSTILE, TESTS

LIMITS = Limits(wall=4, cpu=2, memory=256 << 20)
RIGHT = "def f(x):\n    return sorted(x) if isinstance(x, list) else 2 * x\n"


def verdict(source: str, tests: str = TESTS, limits: Limits = LIMITS) -> Verdict:
    [found] = run([Program(source, tests, ("f",))], limits)
    return found


def children() -> list[str]:
    return [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]


def test_a_right_program_passes() -> None:
    assert verdict(RIGHT) == Verdict("passed")


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_hostile_program_neither_passes_nor_harms_nor_hangs(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    source = HOSTILE[name]
    if name in BREAKS_OUT:
        source = source.replace("{canary}", str(canary))
    before = children()
    start, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = verdict(source)
    assert found.kind != "passed"
    assert found.reason
    assert "\n" not in found.reason
    assert time.monotonic() - start < 12
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # kB
    assert canary.read_text() == "untouched"
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]
    assert children() == before


def answer(body: str, value: object) -> Verdict:
    """The verdict on a program whose function has this body, if the tests expect this value."""
    return verdict("def f():\n" + body, f"found = f()\nassert found == {value!r}, found")


def test_a_program_sees_the_interpreter_and_an_empty_folder_only() -> None:
    listed = "    import os\n    return [sorted(os.listdir(path)) for path in ('/', '/dev', '.', '/tmp')]"
    top = sorted({Path(sys.executable).resolve().parts[1], Path(os.__file__).parts[1], "dev", "tmp"})
    found = answer(listed, [[], ["null", "urandom"], [], []])
    assert found.kind == "failed"
    shown = ast.literal_eval(found.reason.partition(": ")[2].rpartition(" at `")[0])
    assert shown[1:] == [["null", "urandom"], [], []]
    assert set(shown[0]) <= {*top, "lib", "lib64", "packages", "usr"}
    assert answer("    import torch", None).reason.startswith("ModuleNotFoundError")
    assert answer("    import numpy\n    return numpy.int64(3), numpy.linalg.norm([3, 4])", (3, 5.0)).kind == "passed"


def test_a_program_has_no_environment_no_privileges_and_one_process() -> None:
    body = """
    import ctypes, os, resource
    sets = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), sets)
    return [dict(os.environ), os.getpid(), os.getppid(), 0 in (os.getuid(), os.geteuid()), list(sets),
            ctypes.CDLL(None).prctl(39, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)]
"""
    environment = {"LC_CTYPE": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}  # the first is set by Python itself
    assert answer(body, [environment, 1, 0, False, [0] * 6, 1, (0, 0)]) == Verdict("passed")


def test_plain_values_come_back_as_they_are() -> None:
    value = [None, True, -(2**70), 0.1, 1 + 2j, "ä\ud800", b"\0", (1, [2]), {3: {4}}, frozenset({5}), int, {}]
    same = f"x = {value!r}".replace("<class 'int'>", "int") + "\nassert f(x) == x"
    assert verdict("def f(x):\n    return x", same) == Verdict("passed")
    exact = "from fractions import Fraction\nfrom decimal import Decimal\ndef f(x):\n    return eval(x)"
    for text, same in (("Fraction(1, 2)", "0.5"), ("Decimal('-1.5')", "-1.5"), ("range(1, 9, 3)", "range(1, 9, 3)")):
        assert verdict(exact, f"assert f({text!r}) == {same}") == Verdict("passed")
        assert verdict(exact, f"assert f({text!r}) == 2").kind == "failed"
    counted = "import collections\ndef f(x):\n    return collections.Counter(x)"
    assert verdict(counted, "assert f('aab') == {'a': 2, 'b': 1}") == Verdict("passed")


def test_objects_of_the_program_stay_with_it_and_equal_nothing() -> None:
    source = """
class Node:
    def __init__(self, value): self.value, self.next = value, None
    def __eq__(self, other): return True
    def __len__(self): return 3
    def __iter__(self): return iter([self.value])
def f(node): return node.value + (node.next.value if node.next else 0)
def g(): return (n for n in range(3))
"""
    tests = """
a, b = Node(1), Node(2)
a.next = b
assert f(a) == 3 and f(a.next) == 2
assert len(a) == 3 and list(b) == [2] and bool(a) and list(g()) == [0, 1, 2]
assert a != b and a != 1 and not a == [1]
"""
    assert run([Program(source, tests, ("Node", "f", "g"))]) == [Verdict("passed")]


@pytest.mark.parametrize("error", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
def test_an_error_that_ends_loops_does_not_end_those_of_the_tests(error: str) -> None:
    loop = "assert all(map(lambda n: f(n) == 2 * n, [5, 6]))"
    assert verdict(f"def f(x):\n    raise {error}", loop).kind == "failed"
    assert verdict(RIGHT, loop).kind == "passed"


@pytest.mark.parametrize(
    "data", [b"qt\0\0\0\2i\0\0\0\1\1i\0\0\0\1\0", b"gt\0\0\0\3" + b"i\0\0\0\1\0" * 3, b"as\0\0\0\1x", b"qN", b"NN"]
)
def test_bytes_that_are_no_plain_value_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a plain value|arg 3 must not be zero"):
        plain.decode(data)


def test_tests_that_never_call_the_program_do_not_pass_it() -> None:
    assert verdict(RIGHT, "pass") == Verdict("failed", "the tests never called the program")


def test_a_program_longer_than_a_megabyte_is_not_run() -> None:
    rest = "#" * (LONGEST_SOURCE - len(RIGHT))
    assert verdict(RIGHT + rest) == Verdict("passed")
    assert verdict(f"{RIGHT}{rest}#").reason == f"a program of {LONGEST_SOURCE + 1} characters; at most 1048576 are run"


@pytest.mark.slow
def test_the_tests_are_limited_too() -> None:
    assert verdict(RIGHT, "assert f(2)\nwhile True: pass").kind == "timeout"
    assert verdict(RIGHT, "assert f(2)\nx = [0] * 10**10").kind == "memory"


def test_verdicts_are_in_the_order_of_the_programs() -> None:
    programs = [Program(f"def f():\n    return {n}", "assert f() % 3 == 0", ("f",)) for n in range(12)]
    assert [one.kind == "passed" for one in run(programs)] == [n % 3 == 0 for n in range(12)]


@pytest.mark.parametrize("number", [3, 4, 5, 6])
def test_nothing_is_left_when_we_are_killed(number: int) -> None:
    """At every step of the start: 2 sandboxes of 3 processes, and a helper for a moment."""
    code = "from shadowft_core.sandbox import *\nrun([Program('while True: pass', '', ('f',))] * 2)"
    process = subprocess.Popen([sys.executable, "-c", code])
    me = psutil.Process(process.pid)
    until = time.monotonic() + 20
    while len(started := me.children(recursive=True)) < number:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert psutil.wait_procs(started, timeout=5)[1] == []


def test_tests_of_megabytes_are_run() -> None:
    values = [[n % 97] * 20 for n in range(40_000)]
    assert verdict(RIGHT, f"for x in {values!r}: pass\nassert f(x) == sorted(x)") == Verdict("passed")


CONTAINERS = {  # prefix of the command; whether programs can be run
    "only its own user is mapped": (["unshare", "-Ur"], True),
    "another user": (["unshare", "-U", "--map-user=1234", "--map-group=1234"], True),
    "no namespaces": (
        ["unshare", "-Ur", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "x"],
        False,
    ),
}


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP", "SIGINT", "SIGTERM"])
def test_a_program_cannot_signal_the_sandbox_of_its_own_user(signal: str) -> None:
    """Not as root, all three processes have the same user, and a process group spans namespaces."""
    code = (
        "from shadowft_core.sandbox import *\n"
        f"source = 'import os, signal\\nsignal.signal(15, signal.SIG_IGN)\\ntry: os.kill(0, signal.{signal})\\n'\n"
        "source += 'except KeyboardInterrupt: pass\\ndef f(): return 1'\n"
        "print(run([Program(source, 'assert f() == 1', ('f',))]))"
    )
    command = [*CONTAINERS["another user"][0], sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[Verdict(kind='passed', reason='')]\n"


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_in_a_container_programs_are_isolated_or_refused(name: str) -> None:
    prefix, works = CONTAINERS[name]
    code = (
        "from shadowft_core.sandbox import *\nfrom shadowft_core.errors import SandboxError\n"
        "try: print(run([Program('def f(): return 1', 'assert f() == 1', ('f',))]))\n"
        "except SandboxError as error: print('refused:', error)"
    )
    command = [*prefix, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if works:
        assert "kind='passed'" in done.stdout
    else:
        assert done.stdout.startswith("refused: programs cannot be isolated here: OSError: ")
        assert "never run without the sandbox" in done.stdout
        assert "Docker: --security-opt" in done.stdout
