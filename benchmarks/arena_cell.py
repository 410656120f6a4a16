"""One cell of the arena: one pair, one regime, one kind of training, through the stages of the product.

Nothing here trains, grafts, scores or judges by itself: pair, data, deltas, scales, candidate and verdict come from the
functions that the verbs of `shadowft` call. What is made here is the data of the regimes, from the world of the pair,
and the comparisons that no verdict makes.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from shadowft_core import demo
from shadowft_core.delta import extract
from shadowft_core.demo.pico import SOURCES, build_pair, generate
from shadowft_core.demo.pico.world import ANSWER, World
from shadowft_core.evaluate import evaluate
from shadowft_core.files import bytes_digest, canonical_json, file_digest, read_json_object
from shadowft_core.grafting import ONTO_BASE, Options, chosen, graft
from shadowft_core.pair import fetch
from shadowft_core.params import Evaluate, Fetch, Graft, Lora, Prepare, Render, Replay, Sweep, Train, Verdict
from shadowft_core.params.evaluating import Limits
from shadowft_core.prepare import prepare
from shadowft_core.prepare.tracked import content_of
from shadowft_core.selection import select
from shadowft_core.sweep import sweep
from shadowft_core.train import train
from shadowft_core.train.preflight import preflight
from shadowft_core.verdict import verdict
from shadowft_core.verdict.comparison import Comparison
from shadowft_core.verdict.scores import Arm, read_arms


class Regime(StrEnum):
    """What the arms are tuned on, and on which pair."""

    other = "other"  # answers in another author's style, only the letters
    own = "own"  # answers in the Instruct's own style
    weak = "weak"  # as `other`, on a pair whose Base was pretrained too briefly
    replay = "replay"  # as `other`, with general rows among the training rows of every arm


class Method(StrEnum):
    """Which weights train."""

    lora = "lora"
    full = "full"


RATES = {"lora": 1e-3, "full": 5e-4, "osf": 5e-4}
EPOCHS = 1
RANK = 16
REPLAY = 0.3  # share of the training rows
WEAK = 0.4  # of the pretraining steps
TASKS = Path(demo.__file__).with_name("pico") / "tasks"
SCALES = tuple(step / 10 for step in range(1, 11))
DOMAIN, GUARDS = "pico_domain", ("pico_format", "pico_general", "pico_refusal", "pico_stop")
DEV_GUARDS = ("pico_format_dev", "pico_general_dev", "pico_refusal_dev")


@dataclass(frozen=True)
class Sizes:
    """What a cell costs."""

    pretrain: int
    """steps of the Base"""
    posttrain: int
    """steps of the Instruct"""
    rows: int
    """rows of the domain, before the split"""
    items: int | None
    """items per task; None: all"""


def run_cell(place: Path, seed: int, regime: Regime, method: Method, sizes: Sizes) -> dict[str, Any]:
    """Run one cell in the empty folder `place`; returns its line of the result file.

    The routes are `direct` and `shadow`, and with full training also `osf`: orthogonal subspace fine-tuning of the
    Instruct. Raises what the stages raise.
    """
    marks = [time.monotonic()]
    made = build_pair(seed, round(sizes.pretrain * (WEAK if regime is Regime.weak else 1)), sizes.posttrain)
    pair = place / "pair"
    fetch(Fetch(base=str(made / "base"), instruct=str(made / "instruct")), pair)
    marks.append(time.monotonic())
    write_data(place, World(seed), regime, sizes.rows)
    replay = None
    if regime is Regime.replay:
        general = place / "replay"
        replay = Replay(data=str(general), digest=content_of(general).digest, share=REPLAY)
    names = [DOMAIN, *GUARDS, f"{DOMAIN}_dev", *DEV_GUARDS]
    prepare(
        place / "data",
        place / "tasks",
        Prepare(data=str(place / "data"), replay=replay),
        place / "prepared",
        None,
        names,
    )
    routes = {"direct": ("instruct", method.value), "shadow": ("base", method.value)}
    if method is Method.full:
        routes["osf"] = ("instruct", "osf")
    for route, (side, how) in routes.items():
        tuned = place / "tuned" / route
        train(pair / side, pair / "instruct", place / "prepared", _settings(how), tuned)
        extract(pair / side, tuned, place / "delta" / route)
    marks.append(time.monotonic())
    arms, judged = _judged(place, pair / "instruct", list(routes), sizes.items)
    preflight(pair, place / "prepared", _settings(method.value), place / "preflight.json", Render())
    marks.append(time.monotonic())
    candidate = read_json_object(place / "candidate.json")
    keys = ("role", "tasks", "against", "difference", "interval", "outcome")
    return {
        "seed": seed,
        "regime": regime,
        "method": method,
        "seconds": dict(zip(("pair", "train", "score"), (b - a for a, b in itertools.pairwise(marks)), strict=True)),
        "rows": read_json_object(place / "tuned" / "shadow" / "train.json")["rows"],
        "before": _before(read_json_object(place / "preflight.json")),
        "losses": {route: _losses(place / "tuned" / route) for route in routes},
        "untouched": candidate["instruct"]["domain"],
        "points": [{key: at[key] for key in ("route", "scale", "domain", "loss")} for at in candidate["points"]],
        "candidate": candidate["arm"],
        "chosen": candidate["reason"],
        "decision": judged["decision"],
        "reasons": judged["reasons"],
        "gate": [{key: claim[key] for key in keys} for claim in judged["claims"] if claim["gate"]],
        "arms": judged["arms"],
        "compared": {f"{arm} - {other}": _compared(arms, arm, other) for arm, other in _pairs(arms)},
    }


def settings(sizes: Sizes) -> dict[str, Any]:
    """What a line of the result file depends on, besides seed, regime and method: sizes, constants and the world."""
    sources = {file.name: file_digest(file) for file in (*SOURCES, Path(str(generate.__file__)))}
    constants = {"rates": RATES, "epochs": EPOCHS, "rank": RANK, "replay": REPLAY, "weak": WEAK, "scales": list(SCALES)}
    return {"sizes": asdict(sizes), **constants, "world": bytes_digest(canonical_json(sources))}


def _before(measured: dict[str, Any]) -> dict[str, float]:
    """sigma of the pair, the losses of both models in the first step, and the cosine of their gradients."""
    return {**measured["loss"], "cosine": measured["cosine"], "sigma": measured["sigma"]["overall"]}


def _losses(tuned: Path) -> list[float]:
    """The training loss of the first and of the last step."""
    found = read_json_object(tuned / "train.json")
    return [found["first_loss"], found["last_loss"]]


def _settings(method: str) -> Train:
    """One pass over the rows, sixteen a step, as the demo trains; the rates are RATES."""
    return Train.model_validate(
        {
            "method": method,
            "lora": Lora(rank=RANK, alpha=2 * RANK),
            "learning_rate": RATES[method],
            "epochs": EPOCHS,
            "batch_size": 16,
            "max_length": 64,
        }
    )


def _judged(place: Path, instruct: Path, routes: list[str], items: int | None) -> tuple[dict[str, Arm], dict[str, Any]]:
    """Sweep, select, graft, evaluate and verdict with the product's default settings; returns arms and verdict."""
    at = Evaluate(
        tasks=str(place / "tasks"),
        domain=(DOMAIN,),
        guards=GUARDS,
        limit=items,
        batch_size=128,
        kl_answers=0,
        limits=Limits(cut=1, empty=1, unparsed=1, unstopped=1),  # a pair that knows little is a result, not an error
    )
    params = Sweep(scales=SCALES, domain=(f"{DOMAIN}_dev",), guards=DEV_GUARDS)
    data = place / "prepared"
    evaluate(instruct, data, None, None, "instruct", at, place / "scores" / "instruct")
    for route in routes:
        delta, swept, model = place / "delta" / route, place / "sweep" / f"{route}.json", place / "grafted" / route
        sweep(instruct, delta, data, params, at, swept)
        waived = Options(waivers=() if route == "shadow" else (ONTO_BASE,))
        scaled, options = chosen([(delta, None)], waived, Graft(), swept)
        graft(instruct, scaled, model, options)
        evaluate(instruct, data, delta, model, route, at, place / "scores" / route)
    select(place / "sweep", routes, params.tolerance, place / "candidate.json")
    judged = verdict(
        place / "scores", [], routes, Verdict(), place / "verdict.json", candidate=place / "candidate.json"
    )
    return read_arms(place / "scores", routes), judged


def _pairs(arms: Iterable[str]) -> list[tuple[str, str]]:
    """Every two arms, the graft first, the Instruct last; and every arm with the Instruct."""
    order = ["shadow_scaled", "shadow", "osf_scaled", "osf", "direct_scaled", "direct", "instruct"]
    return list(itertools.combinations([name for name in order if name in set(arms)], 2))


def _compared(arms: dict[str, Arm], arm: str, other: str) -> dict[str, Any]:
    """The paired difference on the domain and on all guards, with the verdict's 95 % intervals."""
    found = {}
    for role, tasks in (("domain", [DOMAIN]), ("guards", list(GUARDS))):
        one = Comparison(arms, arm, other, tasks, Verdict(), "margin")
        found[role] = {"difference": one.difference, "interval": list(one.interval), "n": one.n}
    return found


def write_data(place: Path, world: World, regime: Regime, rows: int) -> None:
    """Write data/, tasks/ and replay/ of one regime.

    The guards of the demo that have no dev items get every fifth block of three of their items. In
    `pico_refusal` a block asks about an unknown person in all three wordings, so that no question is in both sets.
    """
    for folder in ("data", "tasks", "replay"):
        (place / folder).mkdir(parents=True)
    for name, found in zip(("sharegpt", "alpaca"), generate.domain_rows(world), strict=True):
        kept = [_in_own_style(row) for row in found] if regime is Regime.own else found
        (place / "data" / f"{name}.json").write_text(json.dumps(kept[: rows // 2]))
    items = generate.evaluation_items(world)
    for dev in set(DEV_GUARDS) - set(items):
        asked = items[task := dev.removesuffix("_dev")]
        items[dev] = [item for at, item in enumerate(asked) if at // 3 % 5 == 0]
        items[task] = [item for at, item in enumerate(asked) if at // 3 % 5]
    for task, asked in items.items():
        (place / "tasks" / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in asked))
        original = task if (TASKS / f"{task}.yaml").is_file() else task.removesuffix("_dev")
        text = (TASKS / f"{original}.yaml").read_text()
        (place / "tasks" / f"{task}.yaml").write_text(text.replace(original, task))
    lessons = [
        {"conversations": [{"from": "human", "value": one.prompt}, {"from": "gpt", "value": one.reply}]}
        for one in itertools.islice(world.lessons(), 3 * rows)  # many repeat or resemble others, and are left out
    ]
    (place / "replay" / "lessons.json").write_text(json.dumps(lessons))


def _in_own_style(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose answer is in the words that the Instruct uses."""
    if "output" in row:
        return row | {"output": ANSWER.format(answer=row["output"])}
    question, reply = row["conversations"]
    return {"conversations": [question, reply | {"value": ANSWER.format(answer=reply["value"])}]}


def clear(place: Path) -> None:
    """Empty a folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
