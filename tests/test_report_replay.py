"""The page names a difference in the rows of the routes, and shows how test rows were chosen."""

import json
from pathlib import Path

import pytest

from shadowft_core.report.routes import changes, notes
from tests.fixtures.report import page, write_work


@pytest.mark.parametrize(("with_it", "said"), [((), 0), (("shadow",), 1), (("direct",), 1), (("shadow", "direct"), 0)])
def test_a_route_that_alone_used_replay_is_named(tmp_path: Path, with_it: tuple[str, ...], said: int) -> None:
    work = write_work(tmp_path)
    for route in with_it:
        file = work / f"tuned/{route}/train.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"rows": {"replay": {"rows": 1234}}}))
    shown = page(work).text
    assert shown.count("was trained on replay rows (1,234)") == said
    assert all(f"Only the route {route} was trained" in shown for route in with_it * said)
    assert shown.count("trained on 1,234 replay rows, too") == 2 * len(with_it) + ("shadow" in with_it)


def test_replay_rows_are_a_difference_of_a_further_route() -> None:
    """Two routes with the same settings differ if only one trained on them."""
    settings = {"settings": {"epochs": 3}}
    train = {"shadow": settings, "direct_replay": settings | {"rows": {"replay": {"rows": 1234}}}, "twin": settings}
    assert changes(train) == {"direct_replay": ["replay rows 1234 (shadow 0)"], "twin": []}
    noted = notes(["direct_replay_scaled", "direct"], "direct_replay_scaled", train, None)
    assert noted["direct_replay_scaled"].startswith("the candidate: further route: ")
    assert noted["direct_replay_scaled"].endswith("scale chosen on dev items; trained on 1,234 replay rows, too")
    assert "replay" not in noted["direct"]


def test_replay_rows_and_newest_test_rows_are_shown(tmp_path: Path) -> None:
    work = write_work(tmp_path)
    file = work / "data/data-report.json"
    newest = {"by": "at", "oldest_in_test": "2024-05-01T00:00:00Z", "note": "test and dev hold the newest rows"}
    more = {"replay": {"rows_used": 1234, "rows_dropped": {"duplicate": 56}}, "newest": newest}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    shown = page(work).text
    assert "1,234" in shown
    assert "56 × duplicate" in shown
    assert "test and dev hold the newest rows; the oldest row in test has the date 2024-05-01T00:00:00Z" in shown
