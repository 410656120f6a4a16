"""The process of the tests: runs them, asks the program for values, and decides.

Trusted. The program is a child in an inner PID namespace, which knows neither this process nor its memory. Only plain
values come from it, so a comparison in a test runs no code of the program.
"""

import builtins
import os
import select
import signal
import time
from types import ModuleType
from typing import Any, NoReturn

from shadowft_core.sandbox import plain
from shadowft_core.sandbox.channel import message
from shadowft_core.sandbox.limits import Limits

# Raised as they are, the first two would end a loop of the tests early, as if all its items were right.
NEVER = (StopIteration, StopAsyncIteration, UnicodeError, ExceptionGroup, Warning)
GRACE = 0.2  # seconds in which a program that closed its channel may end
Outcome = tuple[str, str]  # kind and reason


class Over(BaseException):
    """The program cannot answer any more."""


class ProgramError(Exception):
    """An error of a class that is not built in."""


class Program:
    """The program as the tests see it."""

    def __init__(self, limits: Limits, pid: int, requests: int, replies: int, output: int) -> None:
        self._limits, self._pid = limits, pid
        self._requests, self._replies, self._output = requests, replies, output
        self._ends, self._written = 0.0, 0
        self._poll = select.poll()
        self._poll.register(replies, select.POLLIN)
        self._poll.register(output, select.POLLIN)
        self.outcome: Outcome | None = None
        self.calls = 0
        for descriptor in (requests, replies, output):
            os.set_blocking(descriptor, False)

    def start(self, source: str) -> None:
        """Run the program itself; its time begins. Raises what `ask` raises."""
        self._ends = time.monotonic() + self._limits.wall
        self.send(source)
        self.ask("run", "")

    def send(self, value: object) -> None:
        """Write one message. Raises Over."""
        data = memoryview(message(value, _number_of))
        self._poll.register(self._requests, select.POLLOUT)
        while data:
            if self._requests in self._wait():
                try:
                    data = data[os.write(self._requests, data) :]
                except BrokenPipeError:
                    self._ended()
        self._poll.unregister(self._requests)

    def ask(self, *request: object) -> Any:
        """What the program answers to a request. Raises Over, or the error that the program raised."""
        if self.outcome:
            raise Over
        self.send(request)
        answer = self._receive()
        match answer:
            case ("value", value):
                return self._local(value)
            case ("error", str(name), bool(ordinary), str(text)):
                kind = getattr(builtins, name, None)
                if not ordinary:
                    self._over("failed", f"the program raised {name} {text}".strip())
                if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, NEVER):
                    raise kind(text)
                raise ProgramError(f"{name} {text}".strip())
        self._over("failed", "the program wrote something else than an answer")

    def _receive(self) -> Any:
        data = bytearray()
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            if len(data) >= 4 and int.from_bytes(data[:4], "big") > plain.LONGEST:
                self._over("failed", f"the program returned more than {plain.LONGEST} bytes")
            wanted = 4 if len(data) < 4 else 4 + int.from_bytes(data[:4], "big")
            if self._replies in self._wait():
                part = os.read(self._replies, min(wanted - len(data), 1 << 20))
                if not part:
                    self._ended()
                data += part
        try:
            return plain.decode(bytes(data[4:]))
        except ValueError as error:
            self._over("failed", f"the program wrote something else than an answer ({error})")

    def _wait(self) -> set[int]:
        """The descriptors that are ready; what the program printed is counted and thrown away."""
        left = self._ends - time.monotonic()
        if left <= 0:
            self._over("timeout", f"not finished after {self._limits.wall} s")
        ready = {descriptor for descriptor, _ in self._poll.poll(left * 1000)}
        if self._output in ready:
            part = os.read(self._output, 1 << 16)
            self._written += len(part)
            if not part:
                self._poll.unregister(self._output)
            if self._written > self._limits.output:
                self._over("output", f"more than {self._limits.output} bytes written to stdout and stderr")
        return ready

    def _ended(self) -> NoReturn:
        """The program closed its end of a pipe: say how it ended."""
        until = time.monotonic() + GRACE
        while not (found := os.wait4(self._pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                self._over("failed", "the program closed its descriptors before the tests were over")
            time.sleep(0.005)
        _, status, usage = found
        code = os.waitstatus_to_exitcode(status)
        if code >= 0:
            self._over("failed", f"the program ended with exit code {code} before the tests were over")
        if code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime >= self._limits.cpu - 0.5:
            self._over("timeout", f"more than {self._limits.cpu} s of CPU time")
        self._over("crashed", f"the program was ended by {signal.Signals(-code).name}")

    def _over(self, kind: str, reason: str) -> NoReturn:
        self.outcome = (kind, reason)
        raise Over

    def _local(self, value: Any) -> Any:
        """The value with every reference made into a Remote."""
        if isinstance(value, plain.Reference):
            return Remote(self, value)
        if isinstance(value, list | tuple):
            return type(value)(map(self._local, value))
        if isinstance(value, set | frozenset):
            return type(value)(map(self._local, value))
        if isinstance(value, dict):
            return {self._local(key): self._local(part) for key, part in value.items()}
        return value


class Remote:
    """A function or object of the program. It equals only itself: comparing it would run code of the program."""

    __slots__ = ("_program", "_target")

    def __init__(self, program: Program, target: str | plain.Reference) -> None:
        object.__setattr__(self, "_program", program)
        object.__setattr__(self, "_target", target)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self._program.calls += 1
        return self._program.ask("call", self._target, list(arguments), keywords)

    def __getattr__(self, name: str) -> Any:
        return self._program.ask("get", self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._program.ask("set", self._target, name, value)

    def __bool__(self) -> bool:
        return self._program.ask("bool", self._target) is True

    def __len__(self) -> int:
        return int(self._program.ask("len", self._target))

    def __iter__(self) -> Any:
        return iter(self._program.ask("list", self._target))


def _number_of(value: object) -> int:
    target = object.__getattribute__(value, "_target") if type(value) is Remote else value
    if isinstance(target, plain.Reference):
        return target.number
    raise TypeError(f"a {type(value).__name__} cannot be passed to the program; tests may pass plain values")


def judge(program: Program, source: str, setup: str, tests: str, names: list[str], check: str) -> Outcome:
    """Run the program and its tests; the kind of the outcome is a verdict of `sandbox.Kind`."""
    module = ModuleType("tests")
    space = module.__dict__
    try:
        exec(compile(setup, "<setup>", "exec"), space)  # noqa: S102
        compiled = compile(tests, "<tests>", "exec")  # of some benchmarks, megabytes
        program.start(source)
        space.update({name: Remote(program, name) for name in names})
        exec(compiled, space)  # noqa: S102
        if check:
            space[check](space[names[0]])
    except Over:
        pass
    except MemoryError as error:
        return program.outcome or ("memory", _reason(error, tests))
    except BaseException as error:
        return program.outcome or ("failed", _reason(error, tests))
    if program.outcome:
        return program.outcome
    if not program.calls:
        return "failed", "the tests never called the program"
    return "passed", ""


def _reason(error: BaseException, tests: str) -> str:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    trace, line = error.__traceback__, 0
    while trace:
        if trace.tb_frame.f_code.co_filename == "<tests>":
            line = trace.tb_lineno
        trace = trace.tb_next
    lines = tests.splitlines()
    where = f" at `{lines[line - 1].strip()}`" if 0 < line <= len(lines) else ""
    return text.partition("\n")[0][:300] + where[:300]
