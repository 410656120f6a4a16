"""Silence for the libraries that print while they work."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Hide progress bars and messages of the libraries; yields a list that collects the harness's warnings."""
    warnings: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(" ".join(record.getMessage().split()))

    logger = logging.getLogger("lm_eval")
    handler, propagate = Collect(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        with redirect_stderr(io.StringIO()):
            yield warnings
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
