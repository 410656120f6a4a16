"""The figures of the page, read back from where their marks are drawn, and the points for DVC's plots."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.report import figures, report
from shadowft_core.report.tensors import Grid, grid
from tests.fixtures.marks import Axes, panels
from tests.fixtures.report import dump, write_work


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = write_work(tmp_path_factory.mktemp("figures"))
    report(work, work / "report.html", work / "plots")
    return work


@pytest.fixture(scope="module")
def source(work: Path) -> str:
    return (work / "report.html").read_text("utf-8")


def near(points: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    """Whether the points are those values, as far as the page's pixels tell."""
    return len(points) == len(expected) and all(
        at == pytest.approx(value, abs=2e-3) for at, value in zip(points, expected, strict=True)
    )


def test_the_forest_plot_has_each_claim_of_the_gate_at_its_value(work: Path, source: str) -> None:
    claims = [one for one in json.loads((work / "verdict.json").read_bytes())["claims"] if one["gate"]]
    [axes] = panels(source, "gate")
    [(zero, _), _] = axes.marks("zero")
    assert zero == pytest.approx(0, abs=1e-3)
    seen = []
    for row in range(len(claims)):
        [(at, height)] = axes.marks(f"difference-{row}")
        low, high = (x for x, _ in axes.marks(f"interval-{row}"))
        seen.append((round(at, 2), round(low, 2), round(high, 2)))
        assert height > 0
    assert sorted(seen) == sorted(
        (round(c["difference"], 2), *(round(end, 2) for end in c["interval"])) for c in claims
    )
    assert {at > 0 for at, *_ in seen} >= {True}


def test_a_loss_is_left_of_zero_and_its_limit_is_marked() -> None:
    claims = [
        {"role": "guard", "tasks": [name], "difference": by, "interval": (by - 0.02, by + 0.02), "outcome": "harmed"}
        for name, by in (("first", -0.3), ("second", 0.1))
    ]
    claims[0]["margin"] = 0.05
    [axes] = panels(figures.forest(claims), "forest")
    [(first, upper)], [(second, lower)] = axes.marks("difference-0"), axes.marks("difference-1")
    assert (first, second) == (pytest.approx(-0.3, abs=2e-3), pytest.approx(0.1, abs=2e-3))
    assert upper < lower  # the first claim is above the second
    assert [x for x, _ in axes.marks("limit-0")] == [pytest.approx(-0.05, abs=2e-3)]
    assert "limit-1" not in axes.names()
    assert figures.forest([]) == ""


def test_the_plane_has_every_arm_with_guards_to_the_right_and_the_domain_upwards(work: Path, source: str) -> None:
    arms = json.loads((work / "verdict.json").read_bytes())["arms"]
    [axes] = panels(source, "pareto")
    for name, arm in arms.items():
        assert near(axes.marks(f"arm-{name}"), [(arm["guards"]["mean"], arm["domain"]["mean"])]), name
    labels = axes.texts()
    assert [text for text in labels if text.startswith("guards, ")]
    assert [text for text in labels if text.startswith("domain, ")]


def test_the_plane_has_every_scale_of_every_sweep_apart_from_the_arms(work: Path, source: str) -> None:
    [axes] = panels(source, "pareto")
    for route in ("shadow", "direct"):
        curve = figures.curve(json.loads((work / f"sweep/{route}.json").read_bytes()))
        assert near(axes.marks(f"dev-{route}"), [(at["guards"], at["domain"]) for at in curve]), route
        assert len(curve) == 5
    assert not {name for name in axes.names() if name.startswith("dev-")} & set(axes.names()[-5:])
    assert "shadow, dev, scales 0 to 1" in source


def test_the_front_has_the_arms_that_no_other_beats() -> None:
    def arm(guards: float, domain: float) -> dict[str, Any]:
        return {"guards": {"mean": guards}, "domain": {"mean": domain}}

    arms = {"a": arm(1.0, 0.1), "b": arm(0.9, 0.5), "under_b": arm(0.9, 0.4), "c": arm(0.5, 0.9), "bad": arm(0.4, 0.2)}
    assert figures.front(arms) == ["a", "b", "c"]
    assert figures.front({"a": arm(1, 1), "same": arm(1, 1)}) == ["a", "same"]


def test_the_sweep_has_a_panel_for_each_route(work: Path, source: str) -> None:
    shadow, direct = panels(source, "sweep")
    for axes, route in ((shadow, "shadow"), (direct, "direct")):
        found = json.loads((work / f"sweep/{route}.json").read_bytes())
        for group in ("domain", "guards"):
            points = [(at["scale"], at[group]) for at in figures.curve(found)]
            assert near(axes.marks(f"{group}-{route}"), points)
        assert [x for x, _ in axes.marks(f"scale-{route}")] == [pytest.approx(0.75, abs=2e-3)] * 2


def test_the_loss_curves_have_their_first_and_last_value(work: Path, source: str) -> None:
    [axes] = panels(source, "loss")
    for route in ("shadow", "direct"):
        lines = [json.loads(line) for line in (work / f"tuned/{route}/metrics.jsonl").read_text().splitlines()]
        drawn = axes.marks(f"loss-{route}")
        for at, line in ((drawn[0], lines[0]), (drawn[-1], lines[-1])):
            assert at == (pytest.approx(line["step"], abs=0.3), pytest.approx(line["loss"], abs=0.02))


def darkness(cell: tuple[float, float, str]) -> int:
    return -sum(bytes.fromhex(cell[2].removeprefix("#")))


def test_the_heat_map_is_darker_where_a_module_moved_more(source: str) -> None:
    shadow, direct, _ = panels(source, "heat")
    cells = shadow.cells("heat-shadow_scale_0.75")
    assert len(cells) == 2 * 14
    rows = sorted({top for _, top, _ in cells})
    q_proj, down_proj = ([cell for cell in sorted(cells) if cell[1] == top] for top in rows)
    shades = [darkness(cell) for cell in q_proj]
    assert shades == sorted(shades)  # layer 13 moved most and is at the right
    assert shades[-1] > shades[0]
    assert darkness(down_proj[-1]) < darkness(q_proj[-1])
    names = shadow.texts()
    assert names.index("q_proj") < names.index("down_proj")
    other = [darkness(cell) for cell in sorted(direct.cells("heat-direct_scale_0.75")) if cell[1] == min(
        top for _, top, _ in direct.cells("heat-direct_scale_0.75"))]  # fmt: skip
    assert other[-1] > shades[-1]  # twice the norm, on the same scale of colours


def test_a_grid_joins_experts_and_sorts_layers_by_number() -> None:
    norms = {"delta_norm": 3.0, "weight_norm": 5.0}
    names = [f"model.layers.10.mlp.experts.{i}.up_proj.weight" for i in (0, 1)]
    names += ["model.layers.2.self_attn.q_proj.weight", "model.layers.2.self_attn.q_proj.bias", "lm_head.weight"]
    found = grid({"grafted": {name: dict(norms) for name in names}})
    assert found.layers == ["2", "10", "–"]
    assert found.modules == ["q_proj", "up_proj", "lm_head", "q_proj bias"]
    assert found.cells[("10", "up_proj")] == pytest.approx(0.6)
    assert grid({"grafted": {"a": {"delta_norm": 1.0, "weight_norm": 0.0}}}).cells == {}
    assert figures.heat({"shadow": Grid([], [], {})}) == ""


def test_a_large_heat_map_has_no_numbers_and_few_layer_names() -> None:
    layers = [str(at) for at in range(80)]
    cells = {(layer, "q_proj"): 0.01 + 0.0001 * int(layer) for layer in layers}
    axes: Axes = panels(figures.heat({"r": Grid(layers, ["q_proj"], cells)}), "heat")[0]
    assert len(axes.cells("heat-r")) == 80
    assert 10 < len([text for text in axes.texts() if text.isdecimal()]) < 20


@pytest.mark.parametrize("further", [[], ["direct_replay"], ["direct_replay", "weighted_decay", "osf", "dora"]])
def test_the_plane_has_room_for_its_label_however_long_the_legend(further: list[str]) -> None:
    routes = ["shadow", "direct", *further]
    mean = {"mean": 0.5, "interval": [0.4, 0.6]}
    point = {"scale": 1.0, "domain": 0.5, "guards": 0.5}
    swept = {route: {"curve": [point], "instruct": point, "scale": 1.0} for route in routes}
    names = ["instruct", *routes, *(f"{route}_scaled" for route in routes)]
    drawn = figures.pareto({name: {"domain": mean, "guards": mean} for name in names}, swept)
    [[middle, text]] = re.findall(r'rotate\(-90 [\d.]+ ([\d.]+)\)">(domain, [^<]*)<', drawn)
    points = 9 * 0.55 * len(text)  # of DejaVu Sans at size 9, on average
    assert float(middle) - points / 2 > 0, "the label is cut off above"


HOSTILE = "\u202eevil\x00 <script> $\\frac$ 日本"


def test_names_in_figures_show_what_is_invisible_and_stay_text() -> None:
    mean = {"mean": 0.5, "interval": [0.4, 0.6]}
    claim = {"role": "guard", "tasks": [HOSTILE], "difference": 0.0, "interval": (-1, 1), "outcome": HOSTILE}
    point = {"scale": 1.0, "domain": 0.5, "guards": 0.5}
    swept = {HOSTILE: {"curve": [point], "instruct": point, "scale": 1.0}}
    drawn = {
        "forest": figures.forest([claim]),
        "pareto": figures.pareto({HOSTILE: {"domain": mean, "guards": mean}}, swept),
        "sweep": figures.sweep(swept),
        "loss": figures.loss({HOSTILE: [{"step": 1, "loss": 2.0, "valid_loss": 1.0}]}),
        "heat": figures.heat({HOSTILE: Grid([HOSTILE], [HOSTILE], {(HOSTILE, HOSTILE): 0.1})}),
    }
    for name, source in drawn.items():
        shown = " ".join(text for axes in panels(source, name) for text in axes.texts()) + source
        whole = "&lt;U+202E&gt;evil&lt;U+0000&gt; &lt;script&gt; $\\frac$ 日本"
        assert (whole if name != "heat" else "&lt;U+202E&gt;evil&lt;U+00…") in shown, name
        assert not set("\u202e\x00") & set(source), name
        assert "<script" not in source, name


def test_text_that_looks_like_an_id_is_not_changed() -> None:
    name = 'id="a" url(#b) href="#c"'
    claim = {"role": "guard", "tasks": [name], "difference": 0.0, "interval": (-1, 1), "outcome": "passed"}
    [axes] = panels(figures.forest([claim]), "forest")
    assert name in axes.texts()


def test_the_plots_have_the_points_of_the_figures(work: Path) -> None:
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
    with pytest.raises(EvaluationError, match="is not a JSON number"):
        report(work, work / "report.html", work / "plots")
    assert not (work / "plots").exists()
