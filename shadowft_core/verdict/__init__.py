"""Decides whether the candidate should ship: paired claims on item scores, and the decision that follows from them.

`promote` requires that every claim of the gate holds (claims.py). A tie never promotes. A claim that the items cannot
settle makes the decision `undecided`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import write_json_atomically
from shadowft_core.params import Verdict
from shadowft_core.params.routes import ROUTES
from shadowft_core.verdict import claims as claimed
from shadowft_core.verdict.candidate import read_candidate
from shadowft_core.verdict.claims import Claim
from shadowft_core.verdict.comparison import LEVEL, clusters, item_scores, score_range
from shadowft_core.verdict.decision import Decision, decide, decision_of
from shadowft_core.verdict.forms import junit, markdown
from shadowft_core.verdict.looks import Look, alpha_left, alpha_of, read_run, require_same_models
from shadowft_core.verdict.reasons import reasons
from shadowft_core.verdict.scorefiles import Role
from shadowft_core.verdict.scores import CHAMPIONS, Arm, groups_of, read_arms, with_further
from shadowft_core.verdict.statistics import Sample, mean_of_tasks

__all__ = [
    "Claim",
    "Decision",
    "Look",
    "alpha_left",
    "alpha_of",
    "decide",
    "decision_of",
    "judge",
    "junit",
    "markdown",
    "numbers",
    "verdict",
    "written",
]


def verdict(
    scores: Path,
    recipes: Sequence[Path],
    routes: Sequence[str],
    params: Verdict,
    out: Path,
    metrics: Path | None = None,
    *,
    candidate: Path | str | None = None,
    run: Path | None = None,
    seeds: Path | None = None,
) -> dict[str, Any]:
    """Judge the arms under `scores` and write verdict.json (docs/architecture.md) and, to `metrics`, its numbers.

    `candidate` is candidate.json or the name of an arm; without it, it is the arm that is the model of one of
    `recipes`. `run` is run.json, which names look and champions. Without it, this is a first look, a champion is judged
    if it was scored, and a further route without scores is only named. `seeds` has the scores of further training
    seeds, which claims about the method pool.

    Raises EvaluationError when a score folder is missing or damaged, when the arms did not answer the same items under
    the same template, or when the models that were scored are not those of the recipe, candidate.json or run.json.
    """
    told = None if run is None else read_run(run)
    absent = [] if told else [route for route in routes if route not in ROUTES and not (scores / route).exists()]
    routes = [route for route in routes if route not in absent]
    champions = [name for name in CHAMPIONS if (scores / "champion" / name / "scores.json").exists()]
    arms = read_arms(scores, routes, champions if told is None else list(told.champions))
    chosen = read_candidate(candidate, recipes, arms)
    if run is not None and told is not None:
        require_same_models(run, told, {name: arm.model_digest for name, arm in arms.items()}, chosen.arm)
    look = Look(0 if chosen.arm is None else 1) if told is None else told.as_look
    if seeds is not None:
        arms = with_further(arms, seeds)
    judged = judge(arms, params, candidate=chosen.arm, look=look)
    if chosen.arm is None:
        judged["reasons"].insert(0, chosen.reason)
    judged["reasons"] += [
        f"{scores / route}: no such folder, so no claim is about the route {route}" for route in absent
    ]
    return written(judged | {"recipe_digest": chosen.digest}, out, metrics)


def written(judged: dict[str, Any], out: Path, metrics: Path | None) -> dict[str, Any]:
    """Write a verdict and, to `metrics`, its numbers."""
    write_json_atomically(out, judged)
    if metrics is not None:
        write_json_atomically(metrics, numbers(judged))
    return judged


def numbers(judged: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a verdict for comparing runs, flat. Numbers that were not measured are left out.

    `domain.ARM` and `guards.ARM` are mean scores, `worst_guard` is the candidate minus the Instruct on the guard task
    that lost most, `scale` is the candidate's.
    """
    values: dict[str, float | None] = {}
    if judged["candidate"] is not None:
        values["scale"] = judged["arms"][judged["candidate"]]["scale"]
    for group in ("domain", "guards"):
        values |= {f"{group}.{name}": (arm[group] or {}).get("mean") for name, arm in judged["arms"].items()}
    guards = [claim["difference"] for claim in judged["claims"] if claim["role"] == "guard"]
    values["worst_guard"] = min(guards, default=None)
    return {name: value for name, value in values.items() if value is not None}


def judge(
    arms: Mapping[str, Arm], params: Verdict, *, candidate: str | None, look: Look | None = None
) -> dict[str, Any]:
    """The whole verdict over comparable arms (see `read_arms`), ready for JSON.

    `candidate` is the arm that would ship; None: no arm beat the Instruct on dev items, so nothing may ship. Nor does
    the model ship that is the champion already. `look` says how often the items were read before; None: never.

    Raises EvaluationError when no task has the role domain, `verdict.require` names an arm that was not scored, or
    `verdict.metrics` a metric that no task has.
    """
    if not arms["instruct"].tasks("domain"):
        raise EvaluationError("scores of instruct: no task has the role domain; name one in params evaluate.domain")
    measured = set(arms["instruct"].metrics.values())
    if unknown := sorted(params.metrics.keys() - measured):
        raise EvaluationError(
            f"params verdict.metrics: no task has the metric {unknown[0]!r:.80}, only "
            f"{', '.join(sorted(measured)):.400}; correct or remove it"
        )
    arms = {name: arms[name] for name in groups_of(arms)}
    look = look or Look(0 if candidate is None else 1)
    gate = [] if candidate is None else claimed.gate(arms, candidate, params, look.alpha(params.alpha))
    claims = gate + claimed.method(arms, candidate, params)
    serves = (
        candidate is not None and "champion" in arms and arms[candidate].model_digest == arms["champion"].model_digest
    )
    decision = "hold" if candidate is None or serves else decide(claims)
    stays = "champion" if "champion" in arms else "instruct"
    said = [f"{candidate} is the champion: the same model, so there is nothing to ship"] if serves else []
    return {
        "format": 2,
        "candidate": candidate,
        "decision": decision,
        "arm": candidate if decision == "promote" else stays,
        "reasons": said + reasons(arms, claims, decision, look, params),
        "look": look.record(params.alpha),
        "claims": [asdict(claim) for claim in claims],
        "arms": {name: _summary(arm, arms["instruct"]) for name, arm in arms.items()},
        "direct_control": "direct" in arms,
        "serves": serves,
    }


def _summary(arm: Arm, instruct: Arm) -> dict[str, Any]:
    """Means of one arm with intervals: each task, the domain, the guards together, and everything."""

    def over(tasks: list[str]) -> dict[str, Any] | None:
        if not tasks:
            return None
        items = [item_scores(arm, task) for task in tasks]
        ranges = [score_range((instruct, arm), task) for task in tasks]
        low, high = (sample := Sample(items, ranges, clusters((arm, instruct), tasks))).interval(LEVEL)
        return {"mean": sample.mean, "interval": [low, high], "n": sample.n}

    domain, guards = arm.tasks("domain"), arm.tasks("guard")
    return {
        "scale": arm.scale,
        "domain": over(domain),
        "guards": over(guards),
        "overall": over(domain + guards),
        "tasks": {task: over([task]) for task in domain + guards},
        "seeds": _by_seed(arm),
    }


def _by_seed(arm: Arm) -> list[dict[str, Any]] | None:
    """The mean scores of each training seed; None if the arm has one."""
    if not arm.further:
        return None
    roles: tuple[Role, ...] = ("domain", "guard")
    found = []
    for run in arm.runs:
        scores = {role: [item_scores(run, task) for task in run.tasks(role)] for role in roles}
        means = {role: mean_of_tasks(items) if items else None for role, items in scores.items()}
        found.append({"seed": run.seed, "domain": means["domain"], "guards": means["guard"]})
    return found
