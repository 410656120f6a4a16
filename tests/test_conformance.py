"""The conformance kit run on this project: every row of the table, and the proof that the kit can say no."""

from pathlib import Path

import pytest

from tests.conformance.cases import CASES, Case, Expected
from tests.conformance.kit import Kit, Verdict
from tests.conformance.tools import ours


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("conformance"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_table_holds(kit: Kit, case: Case) -> None:
    outcome = kit.run(case, ours)
    assert outcome.verdict == Verdict.PASS, f"{case.about}: {outcome.verdict}: {outcome.note}"
    assert outcome.answer is not None
    if outcome.answer.error is not None:
        assert issubclass(outcome.answer.error, case.error), outcome.answer
        assert "\n" not in outcome.answer.said
