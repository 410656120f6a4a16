"""The figure of `shadowft power`: what the items of the domain show, and what more items would."""

import io
from base64 import b64decode, b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError
from shadowft_core.files import write_atomically
from shadowft_core.forgetting.page import templates
from shadowft_core.report.drawing import FAINT, INK, canvas, mark, styled, svg

SUFFIXES = (".html", ".svg", ".png")
DPI = 200
LINES = ("#1d4ed8", "#0f766e", "#a16207", "#c2410c", "#a21caf")


def plot(found: Mapping[str, Any], out: Path) -> None:
    """Draw what `power.power` found as a page, an SVG or a PNG, by the suffix of `out`; the same numbers give the same
    bytes. Raises InputError for another suffix."""
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: a figure is written as {', '.join(SUFFIXES)}; choose one of these suffixes")
    if out.suffix.lower() == ".html":
        from markupsafe import Markup

        page = templates("shadowft_core.report").get_template("power.html")
        drawn = Markup(figure(found))  # noqa: S704  drawn here, text escaped
        write_atomically(out, page.render(found=found, figure=drawn).encode("utf-8"))
    else:
        write_atomically(out, b64decode(figure(found, out.suffix.lower())))


@styled
def figure(found: Mapping[str, Any], suffix: str = "") -> str:
    """Above, the probability that a gain is shown and that it is promoted; below, the first for more and fewer items.

    An inline SVG, or a file with this suffix in base64.
    """
    domain, power = found["domain"], found["power"]
    drawn, (above, below) = canvas(5.6, rows=2)
    gains = [point["gain"] for point in domain["curve"]]
    for name, style in (("shown", "-"), ("promoted", "--")):
        if name == "shown" or found["guards"] is not None:
            label = "shown on the domain" if name == "shown" else "promoted, guards unharmed"
            at = [point[name] for point in domain["curve"]]
            above.plot(gains, at, style, color=LINES[0], label=label, gid=mark(name))
    above.axvline(domain["worthwhile"], color=FAINT, linewidth=0.8, linestyle=":", gid=mark("worthwhile"))
    above.set_xlabel(f"true gain, {_unit(domain)} (dotted: worthwhile)")
    above.set_ylabel(f"probability, {domain['n']} items")
    for one, colour in zip(domain["gains"], LINES, strict=False):
        sizes = [at["n"] for at in one["by_items"]]
        shown = [at["shown"] for at in one["by_items"]]
        below.plot(sizes, shown, color=colour, label=f"gain {one['gain']:.3g}", gid=mark("gain", f"{one['gain']:.3g}"))
    below.set_xscale("log")
    below.minorticks_off()
    below.xaxis.set_major_formatter("{x:,.0f}")  # the usual one writes formulas, which are text here
    below.axvline(domain["n"], color=FAINT, linewidth=0.8, linestyle=":", gid=mark("items"))
    below.set_xlabel("items of the domain (dotted: those there are)")
    below.set_ylabel("probability that it is shown")
    for axes in (above, below):
        axes.axhline(power, color=INK, linewidth=0.6, gid=mark("power"))
        axes.set_ylim(0, 1.02)
        axes.legend(loc="best")
    if not suffix:
        return svg(drawn, "power")
    written = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if suffix == ".svg" else {"Software": None}
    drawn.savefig(written, format=suffix[1:], dpi=DPI, metadata=metadata)
    return b64encode(written.getvalue()).decode()


def _unit(domain: Mapping[str, Any]) -> str:
    return "times each task's worthwhile" if domain["unit"] == "worthwhile" else "in score"
