"""The canvas of the report's figures: one style, and inline SVG whose bytes depend on the numbers alone."""

import io
import re
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from shadowft_core.forgetting.text import visible

WIDTH = 4.0  # inches; the page scales it to at most 28 rem, and to the width of a phone
INK, FAINT, GRID = "#1c1917", "#78716c", "#e7e5e4"
LONGEST = 44  # characters of a name

STYLE = {
    "svg.hashsalt": "shadowft",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
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


def styled(draw: Callable[_Inputs, str]) -> Callable[_Inputs, str]:
    """Draw with STYLE set throughout, because matplotlib reads its settings whenever it creates a part."""

    @wraps(draw)
    def in_style(*args: _Inputs.args, **kwargs: _Inputs.kwargs) -> str:
        import matplotlib as mpl

        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the browser has its own fonts
            return draw(*args, **kwargs)

    return in_style


def canvas(height: float, rows: int = 0) -> tuple[Any, Any]:
    """A figure of `height` inches and its axes; with `rows`, a list of axes, one below the other."""
    from matplotlib.figure import Figure  # without pyplot, so no window system is needed

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    if rows:
        return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])
    return figure, figure.subplots()


def named(text: Any, longest: int = LONGEST) -> str:
    """A name as a figure shows it: in one line, invisible characters by their code, not too long."""
    shown = visible(str(text).replace("\n", " ").replace("\t", " "))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def mark(*of: Any) -> str:
    """The id of the mark of a value, without spaces."""
    return "-".join(["mark", *(re.sub(r"[^\w.]+", "_", str(part)) for part in of)])


def svg(figure: Any, name: str) -> str:
    """The bare `<svg>` element, with prefixed ids so that several figures can share one page."""
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = drawn.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _prefixed(tag[0], name), text)  # in tags only: text may look like an id
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true"', text, count=1)


def _prefixed(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
