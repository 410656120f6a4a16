"""The options of a graft: which source decides, and the texts that the command line parses."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import GraftError
from shadowft_core.files import write_json_atomically
from shadowft_core.grafting import Merge, Options, chosen, options_of, parse_delta, parse_scale_for
from shadowft_core.params import Graft


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


def test_the_command_line_precedes_params_and_params_precede_the_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    write_json_atomically(sweep, {"format": 1, "scale": 0.5, "scope": "linear"})

    def choose(
        params: Graft,
        scale: float | None = None,
        scope: Sequence[str] = (),
        own: float | None = None,
        file: Path | None = sweep,
    ) -> tuple[Any, ...]:
        [(_, found)], options = chosen([(tmp_path, own)], Options(scope=["*mine*"]), params, file, scale, scope)
        return found, options.scope, options.dtype

    assert choose(Graft()) == (0.5, "linear", "instruct")
    assert choose(Graft(scale=0.25, dtype="float32")) == (0.25, "linear", "float32")
    assert choose(Graft(scale=0.0)) == (0.0, "linear", "instruct")
    assert choose(Graft(scale=0.25), scale=0.0, scope=["*q*"]) == (0.0, ["*q*"], "instruct")
    assert choose(Graft(scale=0.25), scale=2.0, own=0.0) == (0.0, "linear", "instruct")
    assert choose(Graft(scale=0.25), file=None) == (0.25, ["*mine*"], "instruct")
    assert choose(Graft(), scale=1.0, scope=["all"], file=None) == (1.0, "all", "instruct")
    write_json_atomically(sweep, {"format": 1, "scale": True, "scope": "linear"})
    with pytest.raises(GraftError, match=r"sweep\.json: scale: Input should be a valid number, found True"):
        choose(Graft())


def test_the_factors_of_a_sweep_multiply_the_scale_wherever_it_is_from(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    write_json_atomically(sweep, {"format": 1, "scale": 0.5, "scope": "all", "factors": [["*b*", 0.5], ["*a*", 0]]})
    given = Options(scale_for=(("*c*", 3.0),))

    def choose(own: float | None, params: Graft, scale: float | None = None) -> object:
        return chosen([(tmp_path, own)], given, params, sweep, scale)[1].scale_for

    assert choose(None, Graft()) == (("*b*", 0.25), ("*a*", 0.0), ("*c*", 3.0)), "in order: the last match wins"
    assert choose(None, Graft(scale=2.0)) == (("*b*", 1.0), ("*a*", 0.0), ("*c*", 3.0))
    assert choose(None, Graft(), scale=4.0) == (("*b*", 2.0), ("*a*", 0.0), ("*c*", 3.0))
    assert choose(0.1, Graft()) == (("*b*", 0.05), ("*a*", 0.0), ("*c*", 3.0))
    with pytest.raises(GraftError, match=r"sweep\.json: has factors for the tensors of one delta, found 2 deltas"):
        chosen([(tmp_path, 1.0), (tmp_path, 1.0)], given, Graft(), sweep)
    for damaged in (["*b*"], [["*b*", "x"]], 3):
        write_json_atomically(sweep, {"format": 1, "scale": 0.5, "factors": damaged})
        with pytest.raises(GraftError, match=r"sweep\.json: factors.*: Input should be a valid .* run `shadow"):
            choose(None, Graft())


def test_a_keyword_is_no_part_of_a_list_of_scopes(tmp_path: Path) -> None:
    for scope in (["linear", "*q*"], ["*q*", "all"], ["linear", "all"]):
        with pytest.raises(GraftError, match=r"--scope (linear|all) cannot be combined, found 2 scopes"):
            chosen([(tmp_path, 1.0)], Options(), Graft(), scope=scope)


def test_a_recipe_records_every_option() -> None:
    options = Options(
        scope=["*a*"],
        dtype="float32",
        merge=Merge("dare", 0.5, 3),
        scale_for=(("*b*", 0.25),),
        waivers=("onto-base",),
        ignore=("mtp.*",),
    )
    assert options_of(options.recorded()) == options
    assert all(getattr(options, name) != getattr(Options(), name) for name in vars(options)), "none is the default"
