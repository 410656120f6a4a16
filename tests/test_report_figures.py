"""The figures of the page, and the points for DVC's plots, show the values of the files."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.report import figures, report
from tests.test_report import dump, write_work


def drawn(monkeypatch: pytest.MonkeyPatch, draw: Any, facts: Any) -> Any:
    """The axes of a figure before it becomes SVG."""
    monkeypatch.setattr(figures, "_svg", lambda figure, name: figure)
    return draw(facts).axes[0]


def test_the_forest_plot_shows_each_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = json.loads((write_work(tmp_path) / "verdict.json").read_bytes())["claims"]
    assert any(claim["difference"] for claim in claims)
    lines = drawn(monkeypatch, figures.forest, claims).lines
    for row, claim in enumerate(claims):
        interval, mean = ([float(x) for x in line.get_xdata()] for line in lines[2 * row : 2 * row + 2])
        assert (interval, mean) == (claim["interval"], [claim["difference"]])


def test_the_plane_has_guards_to_the_right_and_the_domain_upwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = json.loads((write_work(tmp_path) / "verdict.json").read_bytes())["arms"]
    axes = drawn(monkeypatch, figures.plane, arms)
    found = {bar.get_label(): tuple(float(at[0]) for at in bar[0].get_data()) for bar in axes.containers}
    assert found == {name: (arm["guards"]["mean"], arm["domain"]["mean"]) for name, arm in arms.items()}
    assert "guards" in axes.get_xlabel()
    assert "domain" in axes.get_ylabel()


def test_the_plots_have_the_points_of_the_figures(tmp_path: Path) -> None:
    work = write_work(tmp_path / "both")
    report(work, work / "report.html", work / "plots")
    points = {path.stem: json.loads(path.read_bytes()) for path in (work / "plots").iterdir()}
    by_route = {f"{kind}-{route}" for kind in ("domain", "guards", "loss") for route in ("shadow", "direct")}
    assert set(points) == {"arms-domain", "arms-guards"} | by_route
    arms = json.loads((work / "verdict.json").read_bytes())["arms"]
    for group in ("domain", "guards"):
        assert {at["arm"]: at["score"] for at in points[f"arms-{group}"]} == {
            name: arm[group]["mean"] for name, arm in arms.items()
        }
    assert [at["scale"] for at in points["domain-shadow"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert points["guards-direct"][0] == {"scale": 0.0, "score": 0.97}
    assert [at["step"] for at in points["loss-direct"]] == list(range(1, 120))


def test_what_was_not_run_or_measured_has_no_points(tmp_path: Path) -> None:
    work = write_work(tmp_path, routes=("shadow",))
    sweep = json.loads((work / "sweep/shadow.json").read_bytes())
    for at in (*sweep["curve"], sweep["instruct"]):
        at["guards"] = None
    dump(work / "sweep/shadow.json", sweep)
    report(work, work / "report.html", work / "plots")
    assert {path.stem for path in (work / "plots").iterdir()} == {
        "arms-domain", "arms-guards", "domain-shadow", "loss-shadow"
    }  # fmt: skip


def test_a_loss_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    work = write_work(tmp_path)
    with (work / "tuned/shadow/metrics.jsonl").open("a") as file:
        file.write('{"step": 120, "loss": NaN}\n')
    with pytest.raises(EvaluationError, match="is not a number"):
        report(work, work / "report.html", work / "plots")
    assert not (work / "plots").exists()
