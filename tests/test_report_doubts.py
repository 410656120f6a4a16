"""The column of the page that counts answers in doubt."""

from typing import Any

import pytest

from shadowft_core.report.doubts import doubts

NONE = {"copies": 1, "cut": 0, "unparsed": 0, "empty": 0, "unstopped": 0, "replaced_examples": 0}


def task(n: int, left_out: dict[str, int] | None = None, **counts: int) -> dict[str, Any]:
    rows = {reason: {"rows": count, "named": []} for reason, count in (left_out or {}).items()}
    return {"role": "domain", "metric": "m", "n": n, "mean": 0.5, "counts": NONE | counts, "left_out": rows}


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task(10), task(5)], "none of 15"),
        ([task(1000, cut=3, empty=1), task(500, cut=2, unparsed=7)], "5 cut, 7 unparsed, 1 empty of 1,500"),
        (
            [task(10, {"longer than the context": 2, "the reply is empty": 1}, unstopped=10)],
            "10 unstopped of 10; 3 rows left out",
        ),
        ([{"role": "guard", "metric": "acc", "n": 3, "mean": 1.0, "counts": {"copies": 0}}], ""),
        ([{"role": "guard", "metric": "acc", "n": 3, "mean": 1.0}], ""),
        ([task(10), task(5, cut=4) | {"flags": ["cut", "format"]}], "4 cut of 15; cut, format flagged on 1"),
    ],
    ids=["none", "kinds", "left-out", "choices", "old", "flags"],
)
def test_answers_in_doubt_are_summed_over_tasks(tasks: list[dict[str, Any]], said: str) -> None:
    assert doubts({"tasks": {str(number): one for number, one in enumerate(tasks)}}) == said
