"""The pages of the arena: arena.md with every cell, and the marked tables of docs/evidence.md.

No number in these tables is written by hand. A table stands between `<!-- arena:NAME -->` and `<!-- /arena:NAME -->`.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from scipy import stats

from benchmarks.graft import machine
from shadowft_core import presets
from shadowft_core.errors import InputError

Cell = dict[str, Any]
REGIMES = {
    "other": "other style",
    "own": "own style",
    "replay": "with replay",
    "weak": "weak Base",
}
METHODS = {"lora": "LoRA", "full": "full"}
ROLES = ("domain", "guards")
SIGNS = {"win": "+", "tie": "=", "lose": "−"}
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.2)  # mean guard loss on dev items
PREDICTORS: dict[str, Callable[[dict[str, float]], float]] = {
    "starting loss of the Instruct minus that of the Base": lambda before: before["instruct"] - before["base"],
    "cosine of the first gradients": lambda before: before["cosine"],
    "minus sigma of the pair": lambda before: -before["sigma"],
}


def page(facts: dict[str, Any]) -> str:
    """arena.md."""
    cells, settings = facts["cells"], facts["settings"]
    lines = ["# The arena", "", "What it means: [docs/evidence.md](../../docs/evidence.md).", ""]
    lines += [f"- {name}: {value}" for name, value in settings.items()]
    lines += ["", "Means on test items with 95 % intervals. The last columns are guards.", ""]
    tasks = [task for task in cells[0]["arms"]["instruct"]["tasks"] if task != "pico_domain"]
    head = ["cell", "arm", "scale", "domain", *(task.removeprefix("pico_") for task in tasks), "all guards"]
    lines += _table(
        head,
        (
            [
                _name(cell) if arm == "instruct" else "",
                f"**{arm}**" if arm == cell["candidate"] else arm,
                f"{found['scale']:g}",
                _interval(found["domain"]["mean"], found["domain"]["interval"], sign=False),
                *(f"{found['tasks'][task]['mean']:.3f}" for task in tasks),
                _interval(found["guards"]["mean"], found["guards"]["interval"], sign=False),
            ]
            for cell in cells
            for arm, found in cell["arms"].items()
        ),
    )
    lines += ["", "The candidate of each cell is bold. The verdicts:", ""]
    lines += [f"- {_name(cell)}: {cell['decision']}. {cell['chosen']} {cell['reasons'][0]}" for cell in cells]
    lines += ["", "Seconds of wall time; the first cell of a pair trains it:", ""]
    lines += _table(
        ["cell", "pair", "train", "score"],
        ([_name(cell), *(f"{cell['seconds'][part]:.0f}" for part in ("pair", "train", "score"))] for cell in cells),
    )
    return "\n".join([*lines, *machine.section(cells[0]["machine"])]) + "\n"


def fill_in(text: str, facts: dict[str, Any]) -> str:
    """The page with every marked table made again. Raises InputError if a mark is missing or unknown."""
    tables = {name: make(facts["cells"]) for name, make in TABLES.items()}
    marked = re.findall(r"<!-- arena:(\w+) -->", text)
    if sorted(marked) != sorted(tables):
        raise InputError(
            f"docs/evidence.md: marks are {sorted(marked)}, tables are {sorted(tables)}; correct the marks"
        )
    for name, lines in tables.items():
        mark = re.compile(rf"(<!-- arena:{name} -->\n).*?(<!-- /arena:{name} -->)", re.DOTALL)
        body = "\n".join(["", *lines, "", ""])
        text, times = mark.subn(lambda found, body=body: f"{found[1]}{body}{found[2]}", text)  # type: ignore[misc]
        if times != 1:
            raise InputError(f"docs/evidence.md: the mark arena:{name} has no end; add <!-- /arena:{name} -->")
    return text


def _setting(cells: Sequence[Cell]) -> list[str]:
    """Size of the whole, and what the untouched Instruct can do."""
    seeds = sorted({cell["seed"] for cell in cells})
    asked = cells[0]["arms"]["instruct"]["tasks"]
    replayed = [cell["rows"]["replay"]["rows"] for cell in cells if "replay" in cell["rows"]]
    lines = [
        f"- {len(cells)} cells, pair seeds {', '.join(map(str, seeds))}",
        f"- training rows: {_range(cell['rows']['train']['rows'] for cell in cells)}"
        + (f", and {_range(replayed)} of replay in that regime" if replayed else ""),
        "- test items: " + ", ".join(f"{task.removeprefix('pico_')} {found['n']}" for task, found in asked.items()),
    ]
    for which, weak in (("pairs", False), ("weak pairs", True)):
        if found := [cell for cell in cells if (cell["regime"] == "weak") == weak]:
            can = (_range((cell["arms"]["instruct"][role]["mean"] for cell in found), ".3f") for role in ROLES)
            lines.append(
                f"- {which}: the untouched Instruct scores {next(can)} on the domain, {next(can)} on the guards"
            )
    for route in ("shadow", "direct"):
        first, last = ([cell["losses"][route][at] for cell in cells] for at in (0, 1))
        side = "Base" if route == "shadow" else "Instruct"
        lines.append(
            f"- loss of the {side} in the first step: {_range(first, '.2f')}; in the last: {_range(last, '.2f')}"
        )
    return lines


def _versus(arm: str, rival: str) -> Callable[[Sequence[Cell]], list[str]]:
    """A row for each regime and method: the mean difference over pair seeds, and the outcome of each seed."""
    pair = f"{arm} - {rival}"

    def table(cells: Sequence[Cell]) -> list[str]:
        total = {role: Counter[str]() for role in ROLES}
        rows = []
        for group in _groups(cell for cell in cells if pair in cell["compared"]):
            row = [_regime(group[0])]
            for role in ROLES:
                found = [cell["compared"][pair][role] for cell in group]
                outcomes = [outcome(one["interval"]) for one in found]
                total[role].update(outcomes)
                means = (mean(cell["arms"][name][role]["mean"] for cell in group) for name in (arm, rival))
                row += [
                    " / ".join(f"{value:.2f}" for value in means),
                    _over_seeds([one["difference"] for one in found]),
                ]
                row.append(" ".join(SIGNS[one] for one in outcomes))
            rows.append(row)
        counts = "; ".join(f"{role}: " + ", ".join(f"{word} {n[word]}" for word in SIGNS) for role, n in total.items())
        head = ["regime, training", *itertools.chain(*([role, "difference", "by seed"] for role in ROLES))]
        return [f"`{arm}` / `{rival}`. Cells by outcome: {counts}.", "", *_table(head, rows)]

    return table


def outcome(interval: Sequence[float]) -> str:
    """What a paired interval says: `win` if it is above zero, `lose` if below, else `tie`."""
    return "win" if interval[0] > 0 else "lose" if interval[1] < 0 else "tie"


def _prices(cells: Sequence[Cell]) -> list[str]:
    """The highest domain score on dev items at each price in guards: shadow minus direct, mean over the pair seeds."""

    def best(cell: Cell, route: str, price: float) -> float:
        kept = [at["domain"] for at in cell["points"] if at["route"] == route and at["loss"] <= price + 1e-9]
        return max([cell["untouched"], *kept])  # scale 0 costs nothing

    rows = []
    for group in _groups(cells):
        row = [_regime(group[0])]
        for price in LOSSES:
            both = [[best(cell, route, price) for cell in group] for route in ("shadow", "direct")]
            row.append(f"{mean(both[0]):.2f} / {mean(both[1]):.2f}")
        rows.append(row)
    return _table(["regime, training", *(f"loss {price:g}" for price in LOSSES)], rows)


def _decisions(cells: Sequence[Cell]) -> list[str]:
    """The candidate that `select` chose and the verdict, by cell."""
    rows, total, named = [], Counter[str](), Counter[str]()
    for group in _groups(cells):
        row = [_regime(group[0])]
        for cell in group:
            arm = cell["candidate"]
            gain = "" if arm is None else f" {cell['gate'][0]['difference']:+.2f}"
            row.append(f"{'none' if arm is None else arm.removesuffix('_scaled')}{gain}: {cell['decision']}")
            total[cell["decision"]] += 1
            named["no arm" if arm is None else arm] += 1
        rows.append(row)
    seeds = max((group for group in _groups(cells)), key=len)
    width = len(seeds)
    head = ["regime, training", *(f"pair seed {cell['seed']}" for cell in seeds)]
    counts = [", ".join(f"{name} {count}" for name, count in counter.most_common()) for counter in (total, named)]
    rows = [row + [""] * (1 + width - len(row)) for row in rows]
    return [f"Decisions: {counts[0]}. Candidates: {counts[1]}.", "", *_table(head, rows)]


def _gates(cells: Sequence[Cell]) -> list[str]:
    """How often each claim of the gate held."""
    total: dict[str, Counter[str]] = {}
    for cell in cells:
        for claim in cell["gate"]:
            subject = {"domain": "gain on the domain", "guards": "all guards"}.get(
                claim["role"], f"guard {', '.join(claim['tasks']).replace('pico_', '')}"
            )
            total.setdefault(subject, Counter())[claim["outcome"]] += 1
    words = ("better", "passed", "too few items", "tie", "worse", "harmed")
    rows = [[subject, *(str(found[word] or "") for word in words)] for subject, found in total.items()]
    return _table(["claim about the candidate", *words], rows)


def _before(cells: Sequence[Cell]) -> list[str]:
    """Rank correlations of what was known before with what the graft gained."""
    rows = []
    for name, value in PREDICTORS.items():
        row = [name]
        for rival, arm in (("direct", "shadow"), ("direct_scaled", "shadow_scaled")):
            for method in METHODS:
                group = [cell for cell in cells if cell["method"] == method]
                x = [value(cell["before"]) for cell in group]
                y = [cell["compared"][f"{arm} - {rival}"]["domain"]["difference"] for cell in group]
                row.append(_correlation(x, y))
        rows.append(row)
    head = ["known before", *(f"{scale}, {kind}" for scale in ("scale 1", "scaled") for kind in METHODS.values())]
    lines = [
        f"Cells in a column: {_range(Counter(cell['method'] for cell in cells).values())}.",
        "",
        *_table(head, rows),
    ]
    names = {"base": "loss of the Base", "instruct": "loss of the Instruct", "cosine": "cosine", "sigma": "sigma"}
    measured = []
    for group in _groups(cells):
        found = (" ".join(f"{cell['before'][key]:.3f}" for cell in group) for key in names)
        measured.append([_regime(group[0]), *found])
    return [
        *lines,
        "",
        "What was measured, by pair seed:",
        "",
        *_table(["regime, training", *names.values()], measured),
    ]


def _paper(_: Sequence[Cell]) -> list[str]:
    """The figures of the paper that the presets know."""
    pairs = yaml.safe_load(Path(presets.__file__).with_name("pairs.yaml").read_text(encoding="utf-8"))
    rows = []
    for name, pair in pairs.items():
        for key, variant in (("figures", "lora"), ("vision_figures", "vision-lora")):
            rows += [[f"`{name}-{variant}`", figure] for figure in pair.get(key, ())]
    return _table(["preset", "published"], rows)


TABLES: dict[str, Callable[[Sequence[Cell]], list[str]]] = {
    "setting": _setting,
    "direct": _versus("shadow", "direct"),
    "scaled": _versus("shadow_scaled", "direct_scaled"),
    "prices": _prices,
    "osf": _versus("osf_scaled", "direct_scaled"),
    "decisions": _decisions,
    "gates": _gates,
    "before": _before,
    "paper": _paper,
}


def _groups(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells of each regime and method, by pair seed."""
    found: dict[tuple[str, str], list[Cell]] = {(regime, method): [] for regime in REGIMES for method in METHODS}
    for cell in cells:
        found[cell["regime"], cell["method"]].append(cell)
    return [sorted(group, key=lambda cell: int(cell["seed"])) for group in found.values() if group]


def _over_seeds(differences: Sequence[float]) -> str:
    """Their mean with the 95 % t interval: seed and items vary together."""
    if len(differences) < 2:
        return f"{differences[0]:+.2f}"
    half = float(stats.t.ppf(0.975, len(differences) - 1)) * stdev(differences) / math.sqrt(len(differences))
    middle = mean(differences)
    return f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]"


def _correlation(x: Sequence[float], y: Sequence[float]) -> str:
    """Spearman's rank correlation; a dash where one side does not vary."""
    return f"{stats.spearmanr(x, y).statistic:+.2f}" if len({*x}) > 1 and len({*y}) > 1 else "–"


def _name(cell: Cell) -> str:
    return f"{_regime(cell)}, seed {cell['seed']}"


def _regime(cell: Cell) -> str:
    return f"{REGIMES[cell['regime']]}, {METHODS[cell['method']]}"


def _interval(middle: float, interval: Sequence[float], *, sign: bool = True) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{middle:{form}} [{interval[0]:{form}}, {interval[1]:{form}}]"


def _range(values: Iterable[float], form: str = "") -> str:
    found = sorted(set(values))
    return f"{found[0]:{form}}" if len(found) == 1 else f"{found[0]:{form}} to {found[-1]:{form}}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
