"""The texts that the command line of `graft` parses."""

from pathlib import Path

import pytest

from shadowft_core.errors import GraftError
from shadowft_core.graft import parse_delta, parse_scale_for


def test_parse_delta_and_parse_scale_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("plain", "at@home", "run@2"):
        Path(folder).mkdir()
    for text, expected in [
        ("plain", ("plain", None)),
        ("plain@0.5", ("plain", 0.5)),
        ("plain@-1e-1", ("plain", -0.1)),
        ("at@home", ("at@home", None)),
        ("at@home@0.5", ("at@home", 0.5)),
        ("run@2", ("run@2", None)),
        ("run@2@3", ("run@2", 3.0)),
        ("absent@me", ("absent@me", None)),
        ("@2", ("@2", None)),
    ]:
        assert parse_delta(text) == (Path(expected[0]), expected[1]), text
    Path("run").mkdir()
    with pytest.raises(GraftError, match="run and run@2 both exist; write run@2@SCALE"):
        parse_delta("run@2")
    assert parse_scale_for("*a=b*=0.5") == ("*a=b*", 0.5)
    for text in ("*mlp*", "*mlp*=x", "=1"):
        with pytest.raises(GraftError, match="expected PATTERN=SCALE"):
            parse_scale_for(text)
