"""The whole table of families against the installed transformers; test_weights_families.py checks a dozen."""

import pytest

from tests.families import generate

pytestmark = pytest.mark.families


def test_the_table_matches_transformers() -> None:
    assert generate.generate() == generate.TABLE.read_text(encoding="utf-8"), "run python -m tests.families.generate"
