"""What the items of a run can decide, before anything is trained: the verb `power`.

The items are those that `evaluate` and `sweep` would ask, with their clusters. The formulas are in verdict/power.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.evaluate import Asked, open_bench
from shadowft_core.params import Params, Verdict
from shadowft_core.power.spreads import Spreads
from shadowft_core.promotion.looks import ItemSet, Looks
from shadowft_core.verdict import Look
from shadowft_core.verdict.claims import EACH
from shadowft_core.verdict.comparison import Limit, threshold
from shadowft_core.verdict.power import DIFFER, Design, Task, pass_together
from shadowft_core.verdict.statistics import POWER
from shadowft_core.weights import open_checkpoint
from shadowft_core.weights.pairfile import read_pair

POINTS = (0.01, 0.02, 0.03, 0.05, 0.1)  # gains in shares of right answers
TIMES = (0.2, 0.5, 1.0, 2.0, 4.0)  # gains in units of `worthwhile`, where the scores are no shares
ALONE = 0.95  # wanted probability that an unharmed arm passes the claim about one guard
STEPS = 40  # points of a curve


def power(
    instruct: Path,
    data: Path,
    params: Params,
    scores: Path | None = None,
    differ: float = DIFFER,
    look: int | None = None,
) -> dict[str, Any]:
    """What the test items show at this look, and what the dev items can choose (docs/json.md has the fields).

    `scores` is a folder of score folders, of any earlier run: the spread of the differences is taken from it, for each
    task from the arm ROUTE_scaled that differs most from the Instruct. Without it, `differ` is the share of 0/1 items
    on which two equal arms differ. `look` is the number of the look; None: one more than the store has of these items.

    Raises what `open_bench` and `read_arm` raise; EvaluationError for scores that are no shares; LedgerError and store
    errors without `look`.
    """
    known = Spreads(params, scores, differ)
    with open_bench(instruct, data, params.evaluate, *_named(params.evaluate), params.render) as bench:
        test = bench.asked
        template, generation = bench.template_digest, bench.generation
    with open_bench(instruct, data, params.evaluate, *_named(params.sweep), params.render) as bench:
        dev = bench.asked
    if look is None:
        domain = {name: (one.metric or "", one.items, one.about) for name, one in _of(test, "domain").items()}
        look = _next_look(instruct, params, ItemSet.of(template, generation, domain))
    level = Look(look).alpha(params.verdict.alpha)
    guards = _guards(test, known, params.verdict)
    found = {
        "look": look,
        "alpha": level,
        "power": POWER,
        "domain": _domain(_of(test, "domain"), known, params.verdict, level, 1.0 if guards is None else guards["all"]),
        "guards": guards,
        "dev": _dev(dev, known, params),
        "assumed": known.assumed(test, dev),
    }
    return {"lines": _lines(found), **found}


def _lines(found: Mapping[str, Any]) -> list[str]:
    """The answer in sentences, the most important one first."""
    domain, guards, dev = found["domain"], found["guards"], found["dev"]
    unit = " times each task's worthwhile" if domain["unit"] == "worthwhile" else ""
    items = f"{domain['n']:,} items" + (f" in {domain['clusters']:,} clusters" * (domain["clusters"] < domain["n"]))
    least = domain["smallest_promoted"]
    first = (
        f"The smallest gain that is promoted with a probability of {POWER:g} is {least:.3g}{unit}"
        if least is not None
        else f"No gain is promoted with a probability of {POWER:g}"
    )
    shown = domain["smallest_shown"]
    alone = f"without the guards it would be {shown:.3g}{unit}" if shown is not None else "nor would any without guards"
    if guards is None:
        alone = "there are no guards"
    lines = [
        f"{first} ({items}, look {found['look']}, level {found['alpha']:.2g}); {alone}.",
        f"A worthwhile gain, {domain['worthwhile']:g}{unit}, is shown with a probability of {domain['shown']:.2f}.",
    ]
    if guards is not None:
        lines.append(f"A candidate that harms nothing passes all guards with a probability of {guards['all']:.2f}.")
    kept = "" if dev["kept"] is None else f", and one that harms nothing keeps the guards with {dev['kept']:.2f}"
    lines.append(
        f"On the {dev['n']:,} dev items an arm with a worthwhile gain comes out ahead with a probability of "
        f"{dev['chooses']:.2f}{kept}."
    )
    return lines


def _named(section: Any) -> tuple[Sequence[str], Sequence[str]]:
    return section.domain, section.guards


def _of(asked: Mapping[str, Asked], role: str) -> dict[str, Asked]:
    return {name: one for name, one in sorted(asked.items()) if one.role == role}


def _next_look(instruct: Path, params: Params, items: ItemSet) -> int:
    pair = instruct.parent / "pair.json"
    digest = read_pair(pair).instruct.digest if pair.is_file() else open_checkpoint(instruct).digest()
    looks = Looks(params.store, digest)
    chain = looks.chain()
    return len(looks.counted([*chain.entries, *chain.dangling], items, None).earlier) + 1


def _design(
    asked: Mapping[str, Asked], known: Spreads, params: Verdict, kind: Limit, *, in_units: bool | None = None
) -> tuple[Design, float, bool]:
    """The mean of the tasks, the threshold, and whether differences are in units of it (see `Comparison`)."""
    limits = {name: threshold(params, one.metric or "", kind) for name, one in asked.items()}
    in_units = len(set(limits.values())) > 1 if in_units is None else in_units
    tasks = [
        Task(one.about, known.of(name, one.metric), limits[name] if in_units else 1.0) for name, one in asked.items()
    ]
    return Design(tasks), 1.0 if in_units else next(iter(limits.values())), in_units


def _domain(asked: Mapping[str, Asked], known: Spreads, params: Verdict, level: float, guards: float) -> dict[str, Any]:
    design, worthwhile, in_units = _design(asked, known, params, "worthwhile")
    shares = not (design.open_scale or in_units)
    gains = [gain for gain in (POINTS if shares else [worthwhile * times for times in TIMES]) if gain <= design.room]
    most = min(design.room, 3 * max([worthwhile, *gains[-1:]]))
    return {
        "tasks": _sizes(asked),
        "n": design.n,
        "clusters": design.clusters,
        "unit": "worthwhile" if in_units else "score",
        "worthwhile": worthwhile,
        "shown": design.better(min(worthwhile, design.room), level),
        "smallest_shown": design.smallest_gain(level),
        "smallest_promoted": design.smallest_gain(level, POWER / guards) if guards > POWER else None,
        "gains": [
            {
                "gain": gain,
                "shown": (shown := design.better(gain, level)),
                "promoted": shown * guards,
                "needed": design.needed_to_show(gain, level),
                "by_items": _by_items(design, gain, level),
            }
            for gain in gains
        ],
        "curve": [
            {"gain": gain, "shown": (shown := design.better(gain, level)), "promoted": shown * guards}
            for gain in (most * step / STEPS for step in range(1, STEPS + 1))
        ],
    }


def _by_items(design: Design, gain: float, level: float) -> list[dict[str, float]]:
    """How often the gain is shown with fewer and with more items, from a tenth to thirty times."""
    factors = (0.1 * 300 ** (step / STEPS) for step in range(STEPS + 1))
    sizes = sorted({max(1, round(design.n * factor)) for factor in factors})
    return [{"n": n, "shown": design.better(gain, level, n / design.n)} for n in sizes]


def _guards(asked: Mapping[str, Asked], known: Spreads, params: Verdict) -> dict[str, Any] | None:
    """How often a candidate without a loss passes; None without guards."""
    tasks = _of(asked, "guard")
    if not tasks:
        return None
    whole, margin, in_units = _design(tasks, known, params, "margin")
    passed = whole.above(-margin, 0.0, params.alpha)
    each, alone, parts = {}, [], []
    for name in dict.fromkeys(one.group for one in tasks.values()):
        own = {task: one for task, one in tasks.items() if one.group == name}
        design, margin_each, units = _design(own, known, params, "margin_each")
        chance = design.above(-margin_each, 0.0, EACH)
        each[name] = {
            "tasks": _sizes(own),
            **_claim(design, margin_each, units, EACH, chance),
            "needed": design.needed_to_pass(margin_each, EACH, ALONE),
        }
        alone.append(chance)
        unit = _design(own, known, params, "margin", in_units=in_units)[0]
        parts.append(len(own) / len(tasks) * unit.deviation())
    return {
        "together": _claim(whole, margin, in_units, params.alpha, passed)
        | {"needed": whole.needed_to_pass(margin, params.alpha, ALONE)},
        "each": each,
        "all": pass_together(alone, passed, parts),
    }


def _claim(design: Design, margin: float, in_units: bool, level: float, passes: float) -> dict[str, Any]:
    return {
        "n": design.n,
        "clusters": design.clusters,
        "unit": "margin" if in_units else "score",
        "margin": margin,
        "alpha": level,
        "passes": passes,
    }


def _dev(asked: Mapping[str, Asked], known: Spreads, params: Params) -> dict[str, Any]:
    """How often the dev items put an arm with a worthwhile gain ahead, and keep one that loses nothing."""
    domain, worthwhile, _ = _design(_of(asked, "domain"), known, params.verdict, "worthwhile")
    guards = _of(asked, "guard")
    kept = None
    if guards:
        design = Design([Task(one.about, known.of(name, one.metric)) for name, one in guards.items()])
        kept = design.seen_above(-params.sweep.tolerance, 0.0)
    return {
        "tasks": _sizes(asked),
        "n": domain.n,
        "chooses": domain.ahead(worthwhile),
        "needed": domain.needed_to_be_ahead(worthwhile),
        "kept": kept,
        "tolerance": params.sweep.tolerance,
    }


def _sizes(asked: Mapping[str, Asked]) -> dict[str, dict[str, Any]]:
    return {
        name: {"n": len(one.items), "clusters": len(set(one.about)), "metric": one.metric}
        for name, one in asked.items()
    }
