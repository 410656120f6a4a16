"""The process of the untrusted program: defines what it defines, then answers the calls of the tests.

Nothing here is trusted once the program runs: it can replace every object of this process. It can only write bytes,
which the other side takes for plain values or for nothing. The tests are never in this process.
"""

import fcntl
import os
import sys
from types import ModuleType
from typing import Any

from shadowft_core.sandbox import plain
from shadowft_core.sandbox.channel import message, read_message, write_all
from shadowft_core.sandbox.isolation import drop
from shadowft_core.sandbox.limits import Limits

REQUESTS, REPLIES = 3, 4  # descriptors
MODULE = "program"


def serve() -> None:
    """Read the source, run it as a module, and answer requests until the tests are over."""
    source = read_message(REQUESTS)
    module = ModuleType(MODULE)
    sys.modules[MODULE] = module
    objects: list[object] = []

    def refer(value: object) -> int:
        objects.append(value)
        return len(objects) - 1

    def resolve(value: Any) -> Any:
        if isinstance(value, plain.Reference):
            return objects[value.number]
        if isinstance(value, list | tuple):
            return type(value)(map(resolve, value))
        if isinstance(value, dict):
            return {resolve(key): resolve(part) for key, part in value.items()}
        return value

    def perform(kind: str, target: Any, *rest: Any) -> Any:
        if kind == "run":
            exec(compile(source, f"<{MODULE}>", "exec"), module.__dict__)  # noqa: S102
            return None
        if isinstance(target, str) and target not in module.__dict__:
            raise NameError(f"the program does not define {target}")
        value = module.__dict__[target] if isinstance(target, str) else resolve(target)
        if kind == "call":
            arguments, keywords = rest
            return value(*resolve(arguments), **resolve(keywords))
        if kind == "get":
            return getattr(value, *rest)
        if kind == "set":
            return setattr(value, rest[0], resolve(rest[1]))
        if kind == "len":
            return len(value)
        return bool(value) if kind == "bool" else list(value)

    while True:
        request = read_message(REQUESTS)
        try:
            answer = message(("value", perform(*request)), refer)
        except BaseException as error:
            answer = message(("error", *_describe(error)), refer)
        write_all(REPLIES, answer)


def _describe(error: BaseException) -> tuple[str, bool, str]:
    """The name of the nearest built-in class of an error, whether it is an Exception, and its text."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    name = type(error).__name__
    return names[0], isinstance(error, Exception), text if name == names[0] else f"{name}: {text}"


def run(limits: Limits, null: int, requests: int, replies: int, output: int) -> None:
    """Keep only these descriptors, as 0 to 4, give up all privileges, and serve."""
    os.setsid()  # a process group spans namespaces: `kill(0, 9)` would reach the launcher, which may be the same user's
    kept = [null, output, output, requests, replies]
    high = [fcntl.fcntl(one, fcntl.F_DUPFD, 32) for one in kept]  # clear of the numbers that they get
    for number, one in enumerate(high):
        os.dup2(one, number)
    os.closerange(len(kept), 256)
    drop(limits)
    serve()
