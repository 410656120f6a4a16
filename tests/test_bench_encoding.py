"""The benchmark of the encoding runs, and both sides give the same ids."""

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.encoding import TEMPLATES, app


def test_both_encodings_give_the_same_ids(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--rows", "20", "--rounds", "1", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "encoding.json").read_text())["templates"]
    assert set(found) == set(TEMPLATES)
    for facts in found.values():
        assert facts["equal_ids"] == 20
        assert facts["tokens"]["ours"] == facts["tokens"]["theirs"]
        assert facts["bytes"] == 8
    assert "| qwen2_5 | " in (tmp_path / "encoding.md").read_text()
