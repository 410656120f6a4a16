"""The stage report: one page for a person to read before promoting. It shows the stages' files and decides nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import bytes_digest, canonical_json, new_folder, write_atomically
from shadowft_core.forgetting.page import templates
from shadowft_core.limits import JSON_BYTES
from shadowft_core.report import doubts, figures, files, forms, record, tensors
from shadowft_core.report.decision import decided
from shadowft_core.report.flips import flips
from shadowft_core.report.routes import changes, notes
from shadowft_core.selection import CandidateFile, Sweep
from shadowft_core.verdict.looks import Run
from shadowft_core.verdict.scorefiles import read_head
from shadowft_core.verdict.scores import CHAMPIONS, groups_of, routes_of
from shadowft_core.verdict.verdictfile import read_verdict

SHOWN = 400  # characters of an output
TENSORS = 8  # rows of the table of tensors

TREATMENTS = {
    "from_instruct": "so training used the Instruct's rows for them",
    "train": "so their rows were trained",
}


def report(work: Path, out: Path, plots: Path | None = None) -> None:
    """Write one self-contained HTML page from the outputs of all stages under `work`. Same files give the same bytes.

    With `plots`, also write a folder with the points of its figures (`points`), each a JSON list.

    verdict.json and the scores of its arms are required; the page names other files that are missing. Raises
    EvaluationError for a required file that is missing, and for one that is damaged or incomplete.
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
    verdict = read_verdict(work / "verdict.json")
    verdict_digest = bytes_digest(canonical_json(verdict))
    groups = groups_of(verdict["arms"])
    verdict["arms"] = {name: verdict["arms"][name] for name in groups}  # in their order
    folders = {name: work / "scores" / group / name for name, group in groups.items()}
    scored = {name: work / "scores" / "champion" / name for name in CHAMPIONS}
    champions = {name: folder for name, folder in scored.items() if (folder / "scores.json").is_file()}
    heads = {name: read_head(folder).told for name, folder in folders.items()}
    routes = sorted(routes_of(verdict["arms"]), key=lambda name: (name != "shadow", name != "direct", name))
    candidate = verdict["candidate"]
    shipped = candidate and candidate.removesuffix("_scaled")
    pair, run = files.optional(work / "pair" / "pair.json", forms.Pair), files.optional(work / "run.json", Run)
    data = files.optional(work / "data" / "data-report.json", forms.Data)
    train = files.by_route(routes, lambda route: files.training(work / "tuned" / route / "train.json"))
    delta = files.by_route(routes, lambda route: files.delta(work / "delta" / route / "delta.json"))
    train = files.with_trainer(train, delta)
    receipts = files.by_route(
        routes, lambda route: files.optional(work / "grafted" / route / "receipt.json", forms.Receipt, JSON_BYTES)
    )
    tasks = sorted(heads["instruct"]["tasks"].items(), key=lambda named: (named[1]["role"] != "domain", named[0]))
    return {
        "verdict": verdict,
        "verdict_digest": verdict_digest,
        "candidate": candidate,
        "decided": decided(verdict, heads, run),
        "heads": heads,
        "by_seed": record.by_seed(verdict),
        "before": record.before(files.optional(work / "preflight.json", forms.Preflight)),
        "doubts": {name: doubts.doubts(head) for name, head in heads.items()},
        "in_doubt": doubts.by_task(heads),
        "other_metrics": doubts.other_metrics(heads),
        "notes": notes(verdict["arms"], candidate, train, pair),
        "changes": changes(train),
        "treatments": TREATMENTS,
        "tasks": [(task, about["role"], about["metric"], about["n"]) for task, about in tasks],
        "flips": flips(champions | folders, candidate),
        "routes": routes,
        "pair": pair,
        "data": data,
        "train": train,
        "samples": files.samples(work / "tuned", routes),
        "steps": files.by_route(routes, lambda route: files.steps(work / "tuned" / route, train.get(route))),
        "delta": delta,
        "sweep": files.by_route(routes, lambda route: files.optional(work / "sweep" / f"{route}.json", Sweep)),
        "selected": files.optional(work / "candidate.json", CandidateFile),
        "shipped": shipped,
        "recipe": files.optional(work / "grafted" / str(shipped) / "recipe.json", forms.Recipe),
        "receipts": receipts,
        "run": run,
        "looks": record.looks(verdict, run),
        "costs": record.costs(run, routes),
        "versions": record.versions(train, delta),
        "not_tested": record.not_tested(verdict, routes, train, data, heads),
    }


def render(facts: Mapping[str, Any]) -> str:
    """The page as HTML. The template engine escapes all values, the drawing library escapes the figures' text."""
    from markupsafe import Markup

    environment = templates("shadowft_core.report")
    environment.filters |= {
        "num": _number,
        "signed": _signed,
        "digest": _digest,
        "short": _short,
        "short_number": _short_number,
    }
    verdict, receipts = facts["verdict"], facts["receipts"]
    grids = {_at_scale(route, facts): tensors.grid(receipt) for route, receipt in receipts.items()}
    drawn = {
        "gate": figures.forest(facts["decided"]["gate"] + facts["decided"]["more"], "gate"),
        "method": figures.forest(facts["decided"]["method"], "method"),
        "pareto": figures.pareto(verdict["arms"], facts["sweep"]),
        "sweep": figures.sweep(facts["sweep"]) if facts["sweep"] else "",
        "loss": figures.loss(facts["steps"]) if facts["steps"] else "",
        "heat": figures.heat(grids),
    }
    page: str = environment.get_template("report.html").render(
        **facts,
        figures={name: Markup(svg) for name, svg in drawn.items()},  # noqa: S704  drawn here, text escaped
        top_tensors=tensors.largest(receipts.get(facts["shipped"]), TENSORS),
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


def _at_scale(route: str, facts: Mapping[str, Any]) -> str:
    scale = facts["verdict"]["arms"].get(f"{route}_scaled", {}).get("scale")
    return route if scale is None else f"{route}, scale {scale:g}"


def _short(text: Any) -> str:
    whole = text if isinstance(text, str) else canonical_json(text).decode("utf-8")
    return whole if len(whole) <= SHOWN else whole[:SHOWN] + " …"


def _number(value: Any, digits: int = 3) -> str:
    """A number with a fixed number of digits, a dash for None; text is unchanged."""
    if value is None:
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _short_number(value: float) -> str:
    """Four digits, without zeros at the end."""
    return f"{value:.4g}"


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _digest(value: Any) -> str:
    """The first twelve hex digits; the page has the whole digest under Lineage."""
    return str(value).removeprefix("sha256:")[:12]
