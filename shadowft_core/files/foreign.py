"""A guard around calls into libraries that parse other people's files and raise exceptions of their own."""

from collections.abc import Iterator
from contextlib import contextmanager

from shadowft_core.errors import CheckpointError
from shadowft_core.files.jsonfile import Error

_DAMAGED = (ValueError, RecursionError, ArithmeticError, LookupError, TypeError, AttributeError)


@contextmanager
def reading(where: object, remedy: str, error: Error = CheckpointError, *also: type[Exception]) -> Iterator[None]:
    """Turn the exceptions that damaged input causes in a library, and those in `also`, into `error`.

    The message is `where`, what was wrong, and `remedy`. UnicodeError is a ValueError, KeyError a LookupError,
    OverflowError an ArithmeticError. Put it around a call into a library and nothing else: it would hide our own
    mistakes.
    """
    try:
        yield
    except _DAMAGED + also as problem:
        said = " ".join(str(problem).split())
        raise error(f"{where}: {type(problem).__name__}{f': {said:.300}' if said else ''}; {remedy}") from None
