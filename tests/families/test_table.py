"""The whole table of families against the installed transformers; test_checkpoint_families.py looks at a dozen."""

import pytest

from tests.families import generate

pytestmark = pytest.mark.families


def test_the_table_is_what_transformers_says_today() -> None:
    assert generate.generate() == generate.TABLE.read_text(encoding="utf-8"), "run python -m tests.families.generate"
