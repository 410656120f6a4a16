"""Figures of the report as inline SVG. Same numbers give the same bytes; text stays text."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

WIDTH = 5.0  # inches; the page scales it
INK, FAINT, GRID = "#1c1917", "#78716c", "#e7e5e4"
COLOURS = {"instruct": "#57534e", "direct": "#c2410c", "shadow": "#1d4ed8"}
MARKERS = {"instruct": "s", "direct": "^", "shadow": "o"}
FURTHER = (("#7c3aed", "D"), ("#0f766e", "v"), ("#a16207", "P"), ("#be185d", "X"), ("#4d7c0f", "p"))  # then repeated
OUTCOMES = {"better": "#15803d", "passed": "#15803d", "worse": "#b91c1c", "harmed": "#b91c1c"}

STYLE = {
    "svg.hashsalt": "shadowft",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a dollar sign in a task name is not math
}

_Inputs = ParamSpec("_Inputs")


def _styled(draw: Callable[_Inputs, str]) -> Callable[_Inputs, str]:
    """Draw with STYLE set throughout, because matplotlib reads its settings whenever it creates a part."""

    @wraps(draw)
    def styled(*args: _Inputs.args, **kwargs: _Inputs.kwargs) -> str:
        import matplotlib as mpl

        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def forest(claims: Sequence[Mapping[str, Any]]) -> str:
    """Paired differences, candidate minus other, with their intervals; one row per claim."""
    figure, axes = _canvas(0.75 + 0.27 * len(claims))
    names = [_row_name(claim, claims[0]["arm"]) for claim in claims]
    for row, claim in enumerate(claims):
        low, high = claim["interval"]
        colour = OUTCOMES.get(claim["outcome"], FAINT)
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
        shape = "o" if claim["role"] == "domain" else "D"
        axes.plot([claim["difference"]], [row], marker=shape, color=colour, markersize=4.5, linestyle="none")
        axes.annotate(claim["outcome"], (1.02, row), xycoords=("axes fraction", "data"), va="center", color=colour)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(claims)), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(claims) - 0.4, -0.6)
    axes.set_xlabel("difference in score, candidate minus other")
    return _svg(figure, "forest")


def _row_name(claim: Mapping[str, Any], candidate: str) -> str:
    if claim["role"] == "guards":
        return "all guards"
    if claim["role"] == "guard":
        return ", ".join(claim["tasks"])
    return f"domain vs {claim['against']}" if claim["arm"] == candidate else f"{claim['arm']} vs {claim['against']}"


@_styled
def plane(arms: Mapping[str, Mapping[str, Any]]) -> str:
    """Domain score against guard score, one point per arm. Empty without guard tasks."""
    if any(arm["guards"] is None for arm in arms.values()):
        return ""
    figure, axes = _canvas(3.3)
    looks = _looks(name.removesuffix("_scaled") for name in arms)
    for name, arm in arms.items():
        x, y = arm["guards"], arm["domain"]
        route = name.removesuffix("_scaled")
        colour, marker = looks[route]
        axes.errorbar(
            [x["mean"]],
            [y["mean"]],
            xerr=_whiskers(x),
            yerr=_whiskers(y),
            fmt=marker,
            color=colour,
            markerfacecolor=colour if name != route or name == "instruct" else "white",
            markersize=6,
            elinewidth=0.8,
            label=name,
        )
    axes.set_xlabel("guards, mean score (right: more is kept)")
    axes.set_ylabel("domain, mean score (up: more is learnt)")
    axes.margins(0.12)
    figure.legend(loc="outside lower center", ncols=3)
    return _svg(figure, "plane")


@_styled
def sweep(sweeps: Mapping[str, Mapping[str, Any]]) -> str:
    """Dev scores against the scale, one panel per route; a vertical line marks the chosen scale."""
    figure, panels = _canvas(2.5, len(sweeps))
    looks = _looks(sweeps)
    for axes, (route, found) in zip(panels, sweeps.items(), strict=True):
        points = curve(found)
        scales = [point["scale"] for point in points]
        axes.axvline(found["scale"], color=FAINT, linewidth=0.8, linestyle=":", label="chosen")
        domain = [p["domain"] for p in points]
        axes.plot(scales, domain, color=looks[route][0], marker="o", markersize=3, label="domain")
        if all(p.get("guards") is not None for p in points):
            guards = [p["guards"] for p in points]
            axes.plot(scales, guards, color=INK, linestyle="--", marker="o", markersize=3, label="guards")
        axes.set_title(f"{route}: scale {found['scale']:g} chosen")
        axes.set_xlabel("scale of the delta")
        axes.legend(loc="best")
    panels[0].set_ylabel("dev score")
    return _svg(figure, "sweep")


@_styled
def loss(steps: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Training loss of each route against optimizer steps, and the validation loss where it was measured."""
    figure, axes = _canvas(2.6)
    for route, (colour, marker) in _looks(steps).items():
        axes.plot(*_columns(losses(steps[route], "loss")), color=colour, label=route)
        if valid := losses(steps[route], "valid_loss"):
            label = f"{route}, validation"
            axes.plot(*_columns(valid), color=colour, linestyle="--", marker=marker, markersize=4, label=label)
    axes.set_xlabel("optimizer step")
    measured = any(losses(lines, "valid_loss") for lines in steps.values())
    axes.set_ylabel("training and validation loss" if measured else "training loss")
    axes.legend(loc="upper right")
    return _svg(figure, "loss")


def losses(lines: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, float]]:
    """(step, loss) of the lines of metrics.jsonl that have the field `loss` or `valid_loss`."""
    return [(line["step"], line[field]) for line in lines if line.get(field) is not None]


def curve(sweep: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a sweep in order of scale, starting with the Instruct at scale 0."""
    swept = [point for point in sweep["curve"] if point["scale"] != 0]
    return sorted([sweep["instruct"] | {"scale": 0.0}, *swept], key=lambda point: point["scale"])


def _looks(routes: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each route, in the given order."""
    named = dict.fromkeys(routes)
    further = sorted(named.keys() - COLOURS.keys())
    return {
        name: (COLOURS[name], MARKERS[name]) if name in COLOURS else FURTHER[further.index(name) % len(FURTHER)]
        for name in named
    }


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _canvas(height: float, columns: int = 0) -> tuple[Any, Any]:
    """A figure and its axes; with `columns`, a list of axes that share the vertical scale."""
    from matplotlib.figure import Figure  # without pyplot, so no window system is needed

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    if columns:
        return figure, list(figure.subplots(1, columns, sharey=True, squeeze=False)[0])
    return figure, figure.subplots()


def _svg(figure: Any, name: str) -> str:
    """The bare `<svg>` element, with prefixed ids so that several figures can share one page."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', text, count=1)


def _whiskers(mean: Mapping[str, Any]) -> list[list[float]]:
    low, high = mean["interval"]
    return [[mean["mean"] - low], [high - mean["mean"]]]
