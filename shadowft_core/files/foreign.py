"""A guard around code that reads what others wrote through a library with exceptions of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from shadowft_core.errors import CheckpointError
from shadowft_core.files.jsonfile import Error

_DAMAGED = (ValueError, RecursionError, ArithmeticError, LookupError, TypeError, AttributeError)


@contextmanager
def reading(where: object, remedy: str, error: Error = CheckpointError, *also: type[Exception]) -> Iterator[None]:
    """Turn the exceptions that damaged input causes in a reader, and `also`, into `error`: `where`, what was wrong,
    `remedy`. UnicodeError is a ValueError, KeyError a LookupError, OverflowError an ArithmeticError.

    It belongs around a call into a library and around nothing else, lest it hide a mistake of ours.
    """
    try:
        yield
    except _DAMAGED + also as problem:
        said = " ".join(str(problem).split())
        raise error(f"{where}: {type(problem).__name__}{f': {said:.300}' if said else ''}; {remedy}") from None
