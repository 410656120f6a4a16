"""The stage report: one page for a person to read before promoting. It shows the stages' files and decides nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import bytes_digest, canonical_json, new_folder, read_json_object, write_atomically
from shadowft_core.forgetting.page import templates
from shadowft_core.report import figures
from shadowft_core.report.doubts import doubts
from shadowft_core.report.forgotten import forgotten
from shadowft_core.report.routes import changes, notes, unclaimed, unequal
from shadowft_core.verdict.scores import groups_of, routes_of

EXAMPLES = 2  # items won, and items lost, to show per task
SHOWN = 400  # characters of an output
TENSORS = 8  # rows of the table of tensors

HEADLINES = {
    "promote": "Every claim holds. The candidate may become champion.",
    "hold": "At least one claim is refuted or tied. The champion stays.",
    "undecided": "No claim is refuted, but there are too few items to settle every claim.",
}
TREATMENTS = {
    "from_instruct": "so training used the Instruct's rows for them",
    "train": "so their rows were trained",
}
TRAINING = ("method", "seed", "steps", "tokens", "first_loss", "last_loss", "untrained_tokens", "stops")
"""fields of train.json that the page shows"""


def report(work: Path, out: Path, plots: Path | None = None) -> None:
    """Write one self-contained HTML page from the outputs of all stages under `work`. Same files give the same bytes.

    With `plots`, also write a folder with the points of its figures (`points`), each a JSON list.

    verdict.json and the scores of its arms are required; the page names other files that are missing. Raises
    EvaluationError or CheckpointError for a required file that is missing, not readable as JSON or incomplete.
    """
    from jinja2 import UndefinedError

    try:
        facts = gather(work)
        page = render(facts)
        lists = {name: canonical_json(rows) for name, rows in points(facts).items()}
    except (KeyError, UndefinedError) as error:
        raise EvaluationError(f"{work}: a stage's file lacks {error}; run that stage again") from error
    except ValueError as error:  # canonical JSON has no NaN
        raise EvaluationError(f"{work}: a score or a loss is not a number ({error}); run that stage again") from error
    write_atomically(out, page.encode("utf-8"))
    if plots is not None:
        with new_folder(plots) as folder:
            for name, rows in lists.items():
                write_atomically(folder / f"{name}.json", rows)


def gather(work: Path) -> dict[str, Any]:
    """Everything the page shows, read from the files that docs/architecture.md describes; None for a missing file."""
    verdict = read_json_object(work / "verdict.json")
    groups = groups_of(verdict["arms"])
    verdict["arms"] = {name: verdict["arms"][name] for name in groups}  # in their order
    candidate = verdict["candidate"] or list(groups)[-1]  # without a candidate, the arm that would be it by default
    folders = {name: work / "scores" / groups[name] / name for name in verdict["arms"]}
    heads = {name: read_json_object(folder / "scores.json") for name, folder in folders.items()}
    routes = sorted(routes_of(verdict["arms"]), key=lambda name: (name != "shadow", name != "direct", name))
    pair = _optional(work / "pair" / "pair.json")
    train = _by_route(routes, lambda route: _training(work / "tuned" / route / "train.json"))
    tasks = sorted(heads["instruct"]["tasks"].items(), key=lambda named: (named[1]["role"] != "domain", named[0]))
    return {
        "verdict": verdict,
        "candidate": candidate,
        "verdict_digest": bytes_digest(canonical_json(verdict)),
        "headline": HEADLINES.get(verdict["decision"], ""),
        "heads": heads,
        "doubts": {name: doubts(head) for name, head in heads.items()},
        "notes": notes(verdict["arms"], train, pair),
        "changes": changes(train),
        "treatments": TREATMENTS,
        "tasks": [(task, about["role"], about["metric"], about["n"]) for task, about in tasks],
        "examples": _examples(
            [task for task, _ in tasks],
            {name: _outputs(folder / "items.jsonl") for name, folder in folders.items()},
            candidate,
        ),
        "forgotten": forgotten(work / "scores", folders["instruct"], folders[candidate]),
        "routes": routes,
        "pair": pair,
        "data": _optional(work / "data" / "data-report.json"),
        "train": train,
        "samples": _samples(work / "tuned", routes),
        "steps": _by_route(routes, lambda route: _steps(work / "tuned" / route, train.get(route))),
        "delta": _by_route(routes, lambda route: _delta(work / "delta" / route / "delta.json")),
        "sweep": _by_route(routes, lambda route: _optional(work / "sweep" / f"{route}.json")),
        "recipe": _optional(work / "grafted" / "shadow" / "recipe.json"),
        "receipt": _optional(work / "grafted" / "shadow" / "receipt.json"),
        "not_claimed": _not_claimed(verdict) + unclaimed(routes) + unequal(train),
    }


def render(facts: Mapping[str, Any]) -> str:
    """The page as HTML. The template engine escapes all values, the drawing library escapes the figures' text."""
    from markupsafe import Markup

    environment = templates("shadowft_core.report")
    environment.filters |= {"num": _number, "signed": _signed, "digest": _digest}
    verdict = facts["verdict"]
    drawn = {
        "forest": figures.forest(verdict["claims"]),
        "plane": figures.plane(verdict["arms"]),
        "sweep": figures.sweep(facts["sweep"]) if facts["sweep"] else "",
        "loss": figures.loss(facts["steps"]) if facts["steps"] else "",
    }
    page: str = environment.get_template("report.html").render(
        **facts,
        figures={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704  drawn here, text escaped
        top_tensors=_top_tensors(facts["receipt"]),
        shown=TENSORS,
    )
    return page


def points(facts: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The points of the figures by name: arms, scale curves and losses. A figure without points is left out.

    `arms-domain`, `arms-guards`: {arm, score}; `domain-ROUTE`, `guards-ROUTE`: {scale, score} on dev items, where scale
    0 is the Instruct; `loss-ROUTE`, `valid-loss-ROUTE`: {step, loss}.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for group in ("domain", "guards"):
        arms = facts["verdict"]["arms"].items()
        found[f"arms-{group}"] = [{"arm": name, "score": arm[group]["mean"]} for name, arm in arms if arm[group]]
        for route, sweep in facts["sweep"].items():
            curve = figures.curve(sweep)
            found[f"{group}-{route}"] = [
                {"scale": at["scale"], "score": at[group]} for at in curve if at.get(group) is not None
            ]
    for route, steps in facts["steps"].items():
        for name, field in (("loss", "loss"), ("valid-loss", "valid_loss")):
            at = figures.losses(steps, field)
            found[f"{name}-{route}"] = [{"step": step, "loss": loss} for step, loss in at]
    return {name: rows for name, rows in found.items() if rows}


def _outputs(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["task"], row["item"]): row for row in _lines(path) or []}


def _examples(
    tasks: Sequence[str], arms: Mapping[str, Mapping[tuple[str, str], Mapping[str, Any]]], name: str
) -> list[dict[str, Any]]:
    """For each task, the items on which candidate and Instruct differ most, won and lost; ties by digest."""
    candidate, instruct = arms[name], arms["instruct"]
    shown_arms = list(dict.fromkeys(arm for arm in ("instruct", "direct_scaled", name) if arm in arms))
    found = []
    for task in tasks:
        gains = {
            key: candidate[key]["score"] - row["score"]
            for key, row in instruct.items()
            if key[0] == task and key in candidate
        }
        for kind, sign in (("won", 1), ("lost", -1)):
            keys = sorted((k for k in gains if sign * gains[k] > 0), key=lambda k: (-sign * gains[k], k))
            if keys:
                rows = [
                    {
                        "item": key[1],
                        "prompt": _short(instruct[key]["prompt"]) if "prompt" in instruct[key] else None,
                        "answers": [
                            (name, arms[name][key]["score"], _short(arms[name][key].get("output", "")))
                            for name in shown_arms
                        ],
                    }
                    for key in keys[:EXAMPLES]
                ]
                found.append({"task": task, "kind": kind, "count": len(keys), "rows": rows})
    return found


def _not_claimed(verdict: Mapping[str, Any]) -> list[str]:
    said = [
        "One training run per route was judged. The intervals cover new items of the same tasks, not another seed, "
        "other data or another pair of models.",
        "Nothing is claimed about abilities that no task on this page measures.",
        "Items of one task are assumed to be independent of each other.",
    ]
    if not verdict["direct_control"]:
        said.insert(0, "The Instruct was not tuned directly, so nothing is claimed about direct tuning.")
    if not any(claim["role"] == "guard" for claim in verdict["claims"]):
        said.insert(0, "No guard task was measured, so nothing is claimed about the abilities that the Instruct keeps.")
    return said


def _training(path: Path) -> dict[str, Any] | None:
    """train.json; None for what a file of an older version, or of another trainer, does not have."""
    found = _optional(path)
    return None if found is None else dict.fromkeys(TRAINING) | found


def _steps(tuned: Path, train: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """The lines of metrics.jsonl; the validation loss after training is added where they lack it."""
    lines, found = _lines(tuned / "metrics.jsonl", optional=True), train or {}
    if lines and found.get("valid_loss") is not None and "valid_loss" not in lines[-1]:
        lines.append({"step": found["steps"], "valid_loss": found["valid_loss"]})
    return lines


def _samples(tuned: Path, routes: Sequence[str]) -> list[dict[str, Any]]:
    """The sequences that `train` wrote as text, of the first route with such a file; all routes read the same rows."""
    files = (tuned / route / "samples.jsonl" for route in routes)
    return next((found for file in files if (found := _lines(file, optional=True))), [])


def _delta(path: Path) -> dict[str, Any] | None:
    """Digest, kind, Base and number of tensors of a delta.json."""
    certificate = _optional(path)
    if certificate is None:
        return None
    return {
        "digest": bytes_digest(canonical_json(certificate)),
        "kind": certificate["kind"],
        "base": certificate["base"]["digest"],
        "tensors": len(certificate["tensors"]),
    }


def _top_tensors(receipt: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The grafted tensors with the largest delta relative to the weight."""
    grafted = (receipt or {}).get("grafted") or {}

    def share(named: tuple[str, Mapping[str, Any]]) -> tuple[float, str]:
        name, norms = named
        return -norms["delta_norm"] / (norms["weight_norm"] or 1.0), name

    return sorted(grafted.items(), key=share)[:TENSORS]


def _by_route(routes: Sequence[str], read: Any) -> dict[str, Any]:
    return {route: found for route in routes if (found := read(route)) is not None}


def _optional(path: Path) -> dict[str, Any] | None:
    return read_json_object(path) if path.exists() else None


def _lines(path: Path, *, optional: bool = False) -> list[dict[str, Any]] | None:
    if optional and not path.exists():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file; run the stage that writes it") from None
    except ValueError as error:
        raise EvaluationError(f"{path}: not readable as JSON lines: {error}; run the stage that writes it") from None


def _short(text: Any) -> str:
    whole = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return whole if len(whole) <= SHOWN else whole[:SHOWN] + " …"


def _number(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of digits, a dash for None; text is unchanged."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _digest(value: Any) -> str:
    """The first twelve hex digits; the page has the whole digest under Lineage."""
    return str(value).removeprefix("sha256:")[:12]
