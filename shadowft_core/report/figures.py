"""Figures of the report as inline SVG. Same numbers give the same bytes; text stays text.

The id of every mark of a value begins with the figure's name and `mark`, so that it can be read back from the page.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadowft_core.report.drawing import FAINT, INK, canvas, mark, named, styled, svg
from shadowft_core.report.tensors import Grid
from shadowft_core.verdict.scores import CHAMPIONS

COLOURS = {"instruct": "#57534e", "champion": "#a21caf", "direct": "#c2410c", "shadow": "#1d4ed8"}
MARKERS = {"instruct": "s", "champion": "*", "direct": "^", "shadow": "o"}
FURTHER = (("#7c3aed", "D"), ("#0f766e", "v"), ("#a16207", "P"), ("#be185d", "X"), ("#4d7c0f", "p"))  # then repeated
OUTCOMES = {"better": "#15803d", "passed": "#15803d", "worse": "#b91c1c", "harmed": "#b91c1c"}
ROW = 0.42  # inches of a row of the forest plot
TICK = 18  # characters of the name of a module
BROAD = 26  # characters of a name in the legend; longer ones need the whole width
ANNOTATED = 8  # layers of the heat map: with more, the numbers would not fit


@styled
def forest(claims: Sequence[Mapping[str, Any]], name: str = "forest") -> str:
    """Paired differences with their intervals, and the largest loss that a claim allows; one row per claim. Empty
    without claims."""
    if not claims:
        return ""
    figure, axes = canvas(0.7 + ROW * len(claims))
    for row, claim in enumerate(claims):
        low, high = claim["interval"]
        colour = OUTCOMES.get(claim["outcome"], FAINT)
        axes.plot([low, high], [row, row], color=colour, linewidth=2, solid_capstyle="butt", gid=mark("interval", row))
        shape = "o" if claim["role"] == "domain" else "D"
        style = {"marker": shape, "color": colour, "markersize": 4.5, "linestyle": "none"}
        axes.plot([claim["difference"]], [row], gid=mark("difference", row), **style)
        if (margin := claim.get("margin")) is not None:
            limit = {"marker": "|", "color": OUTCOMES["harmed"], "markersize": 9, "linestyle": "none"}
            axes.plot([-margin], [row], gid=mark("limit", row), **limit)
        above: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 6), "textcoords": "offset points"}
        above["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.annotate(subject(claim), (0, row), va="bottom", **above)
        axes.annotate(named(claim["outcome"]), (1, row), va="bottom", ha="right", color=colour, **above)
    axes.axvline(0, color=INK, linewidth=0.8, gid=mark("zero"))
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_ylim(len(claims) - 0.6, -0.8)
    axes.margins(x=0.06)
    axes.set_xlabel("difference in score (right of 0: better)")
    return svg(figure, name)


def subject(claim: Mapping[str, Any]) -> str:
    """What a row of the forest plot compares, in a few words."""
    if claim["role"] == "guards":
        return "all guards"
    if claim["role"] == "guard":
        first, *others = claim["tasks"]
        return named(f"{first} and {len(others)} more" if others else str(first))
    return named(f"domain: {claim['arm']} vs {claim['against']}")


@styled
def pareto(arms: Mapping[str, Mapping[str, Any]], sweeps: Mapping[str, Mapping[str, Any]]) -> str:
    """Domain score against guard score: arms on test items, and below them every scale of every sweep on dev items.

    A dotted line joins the arms that no other arm beats on both. Empty without guard tasks.
    """
    if any(arm["guards"] is None for arm in arms.values()):
        return ""
    figure, axes = canvas(3.9)
    looks = _looks([*(_route(name) for name in arms), *sweeps])
    for route, found in sweeps.items():
        at = [point for point in curve(found) if point.get("guards") is not None]
        style = {"marker": looks[route][1], "markersize": 3.5, "markerfacecolor": "white", "markeredgewidth": 0.7}
        x, y = [point["guards"] for point in at], [point["domain"] for point in at]
        label = named(f"{route}, dev, scales {at[0]['scale']:g} to {at[-1]['scale']:g}") if at else None
        axes.plot(x, y, color=looks[route][0], linewidth=0.7, alpha=0.75, label=label, gid=mark("dev", route), **style)
    for name, arm in arms.items():
        x, y = arm["guards"], arm["domain"]
        colour, marker = looks[_route(name)]
        filled = name.endswith("_scaled") or name == "instruct" or name in CHAMPIONS
        bars = axes.errorbar(
            [x["mean"]],
            [y["mean"]],
            xerr=_whiskers(x),
            yerr=_whiskers(y),
            fmt=marker,
            color=colour,
            markerfacecolor=colour if filled else "white",
            markersize=7,
            elinewidth=0.8,
            label=named(name),
        )
        bars[0].set_gid(mark("arm", name))
    edge = [(arms[name]["guards"]["mean"], arms[name]["domain"]["mean"]) for name in front(arms)]
    axes.plot(*zip(*edge, strict=True), color=FAINT, linestyle=":", linewidth=1, zorder=1, gid=mark("front"))
    axes.set_xlabel("guards, mean score (right: more is kept)")
    axes.set_ylabel("domain, mean score (up: more is learnt)")
    axes.margins(0.08)
    labels = axes.get_legend_handles_labels()[1]
    columns = 1 if max(map(len, labels)) > BROAD else 2
    figure.set_figheight(3.3 + 0.17 * math.ceil(len(labels) / columns))  # so that it takes nothing from the axes
    figure.legend(loc="outside lower center", ncols=columns)
    return svg(figure, "pareto")


def front(arms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The arms that no other arm beats on domain or guards without losing on the other, by falling guard score."""
    at = {name: (arm["guards"]["mean"], arm["domain"]["mean"]) for name, arm in arms.items()}
    kept = [
        name
        for name, own in at.items()
        if not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in at.values())
    ]
    return sorted(kept, key=lambda name: (-at[name][0], at[name][1], name))


@styled
def sweep(sweeps: Mapping[str, Mapping[str, Any]]) -> str:
    """Dev scores against the scale, one panel per route; a vertical line marks the scale of the arm ROUTE_scaled."""
    figure, panels = canvas(0.3 + 1.9 * len(sweeps), len(sweeps))
    looks = _looks(sweeps)
    for axes, (route, found) in zip(panels, sweeps.items(), strict=True):
        points = curve(found)
        scales = [point["scale"] for point in points]
        axes.axvline(found["scale"], color=FAINT, linewidth=0.8, linestyle=":", gid=mark("scale", route))
        style = {"marker": "o", "markersize": 3}
        domain = [p["domain"] for p in points]
        axes.plot(scales, domain, color=looks[route][0], label="domain", gid=mark("domain", route), **style)
        if all(p.get("guards") is not None for p in points):
            guards = [p["guards"] for p in points]
            style["linestyle"] = "--"
            axes.plot(scales, guards, color=INK, label="guards", gid=mark("guards", route), **style)
        axes.set_title(f"{named(route)}: scale {found['scale']:g} chosen")
        axes.set_ylabel("dev score")
        axes.legend(loc="best")
    panels[-1].set_xlabel("scale of the delta")
    return svg(figure, "sweep")


@styled
def loss(steps: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Training loss of each route against optimizer steps, and the validation loss where it was measured."""
    figure, axes = canvas(2.8)
    for route, (colour, marker) in _looks(steps).items():
        found = losses(steps[route], "loss")
        axes.plot(*_columns(found), color=colour, linewidth=1, label=named(route), gid=mark("loss", route))
        if valid := losses(steps[route], "valid_loss"):
            style = {"color": colour, "linestyle": "--", "marker": marker, "markersize": 5, "markeredgecolor": "white"}
            label = f"{named(route)}, validation"
            axes.plot(*_columns(valid), label=label, gid=mark("valid", route), **style)
    axes.set_xlabel("optimizer step")
    measured = any(losses(lines, "valid_loss") for lines in steps.values())
    axes.set_ylabel("training and validation loss" if measured else "training loss")
    axes.legend(loc="upper right")
    return svg(figure, "loss")


@styled
def heat(grids: Mapping[str, Grid]) -> str:
    """How far each module of each layer was moved: norm of delta over norm of weight; one panel per graft, all with the
    same colours. Empty if nothing was moved."""
    grids = {title: grid for title, grid in grids.items() if any(grid.cells.values())}
    import matplotlib as mpl

    if not grids:
        return ""
    most = 100 * max(value for grid in grids.values() for value in grid.cells.values())
    tall = [max(0.8, 0.19 * len(grid.modules)) for grid in grids.values()]
    colours = mpl.colormaps["Blues"].resampled(32)  # few enough that the bar is drawn as paths, not as an image
    figure, panels = canvas(0.35 + sum(tall) + 0.65 * len(tall), len(tall))
    panels[0].get_gridspec().set_height_ratios(tall)
    for axes, (title, grid) in zip(panels, grids.items(), strict=True):
        rows = [
            [100 * grid.cells.get((layer, module), float("nan")) for layer in grid.layers] for module in grid.modules
        ]
        mesh = axes.pcolormesh(rows, cmap=colours, vmin=0, vmax=most, edgecolors="white", linewidth=0.4)
        mesh.set_gid(mark("heat", title))
        axes.set_yticks([at + 0.5 for at in range(len(grid.modules))], [named(module, TICK) for module in grid.modules])
        every = 1 + len(grid.layers) // 16
        ticks = range(0, len(grid.layers), every)
        axes.set_xticks([at + 0.5 for at in ticks], [named(grid.layers[at], 4) for at in ticks])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.invert_yaxis()
        axes.set_title(named(title))
        if len(grid.layers) <= ANNOTATED:
            for (layer, module), value in grid.cells.items():
                at = grid.layers.index(layer) + 0.5, grid.modules.index(module) + 0.5
                dark = 100 * value > 0.6 * most
                axes.annotate(
                    f"{100 * value:.2g}", at, ha="center", va="center", color="white" if dark else INK, fontsize=7.5
                )
    panels[-1].set_xlabel("layer")
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("norm of delta / norm of weight, %")
    bar.outline.set_visible(False)
    return svg(figure, "heat")


def losses(lines: Sequence[Mapping[str, Any]], field: str) -> list[tuple[int, float]]:
    """(step, loss) of the lines of metrics.jsonl that have the field `loss` or `valid_loss`."""
    return [(line["step"], line[field]) for line in lines if line.get(field) is not None]


def curve(sweep: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The points of a sweep in order of scale, starting with the Instruct at scale 0."""
    swept = [point for point in sweep["curve"] if point["scale"] != 0]
    return sorted([sweep["instruct"] | {"scale": 0.0}, *swept], key=lambda point: point["scale"])


def _route(arm: str) -> str:
    return "champion" if arm in CHAMPIONS else arm.removesuffix("_scaled")


def _looks(routes: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each route, in the given order."""
    wanted = dict.fromkeys(routes)
    further = sorted(wanted.keys() - COLOURS.keys())
    return {
        name: (COLOURS[name], MARKERS[name]) if name in COLOURS else FURTHER[further.index(name) % len(FURTHER)]
        for name in wanted
    }


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _whiskers(mean: Mapping[str, Any]) -> list[list[float]]:
    low, high = mean["interval"]
    return [[mean["mean"] - low], [high - mean["mean"]]]
