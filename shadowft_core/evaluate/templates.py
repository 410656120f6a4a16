"""The Jinja templates of task files, compiled once; the harness compiles them for every document."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from shadowft_core.suites.consent import isolate_templates

KEPT = 1024  # templates


@contextmanager
def compiled_once() -> Iterator[None]:
    """Keep compiled templates in the block. A template has no state, so the texts are the same."""
    from lm_eval import utils

    isolate_templates()  # makes the environment; a later call would replace it
    env = utils.env
    before = env.__dict__.get("from_string")  # set only inside another such block
    env.from_string = lru_cache(KEPT)(env.from_string)
    try:
        yield
    finally:
        if before is None:
            del env.from_string
        else:
            env.from_string = before
