"""Decides whether the graft is better: paired claims on item scores, and the decision that follows from them.

`promote` requires that every claim holds (claims.py). A tie never promotes. A claim that the items cannot settle makes
the decision `undecided`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shadowft_core.errors import EvaluationError
from shadowft_core.files import write_json_atomically
from shadowft_core.params import Verdict
from shadowft_core.verdict.claims import (
    CANDIDATE,
    LEVEL,
    Claim,
    Decision,
    decide,
    item_scores,
    non_inferiority,
    rivals,
    score_range,
    superiority,
)
from shadowft_core.verdict.scores import Arm, arm_names, read_arms, recipe_digest, routes_of
from shadowft_core.verdict.statistics import interval, mean_of_tasks

__all__ = ["CANDIDATE", "Claim", "Decision", "decide", "decision_of", "judge", "numbers", "verdict"]

JUDGED = ("shadow", "direct")  # routes that the claims are about


def verdict(
    scores: Path, recipe: Path, routes: Sequence[str], params: Verdict, out: Path, metrics: Path | None = None
) -> None:
    """Judge the arms under `scores` and write verdict.json (docs/architecture.md) and, to `metrics`, its numbers.

    Raises EvaluationError when a score folder is missing or damaged, when the arms did not answer the same items under
    the same template, or when the candidate that was scored is not the model of `recipe`.
    """
    arms = read_arms(scores, routes)
    expected = recipe_digest(recipe)
    scored = arms[CANDIDATE].model_digest
    if scored != expected:
        raise EvaluationError(
            f"{recipe}: model is {expected}, but the scores of {CANDIDATE} are of {scored}; "
            "evaluate the grafted folder again"
        )
    judged = judge(arms, params)
    write_json_atomically(out, judged | {"recipe_digest": expected})
    if metrics is not None:
        write_json_atomically(metrics, numbers(judged))


def numbers(judged: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a verdict for comparing runs, flat. Numbers that were not measured are left out.

    `domain.ARM` and `guards.ARM` are mean scores, `worst_guard` is the candidate minus the Instruct on the guard task
    that lost most, `scale` is the candidate's.
    """
    values: dict[str, float | None] = {"scale": judged["arms"][CANDIDATE]["scale"]}
    for group in ("domain", "guards"):
        values |= {f"{group}.{name}": (arm[group] or {}).get("mean") for name, arm in judged["arms"].items()}
    guards = [claim["difference"] for claim in judged["claims"] if claim["role"] == "guard"]
    values["worst_guard"] = min(guards, default=None)
    return {name: value for name, value in values.items() if value is not None}


def judge(arms: Mapping[str, Arm], params: Verdict) -> dict[str, Any]:
    """The whole verdict over comparable arms (see `read_arms`), ready for JSON.

    The arms of further routes are summarised, and nothing is claimed about them: the decision is the same without them.

    Raises EvaluationError when no task has the role domain.
    """
    if not arms["instruct"].tasks("domain"):
        raise EvaluationError("scores of instruct: no task has the role domain; name one in params evaluate.domain")
    shown = {name: arms[name] for name in arm_names(routes_of(arms)) if name in arms}
    arms = {name: arms[name] for name in arm_names(JUDGED) if name in arms}  # further arms change no claim and no range
    claims = superiority(arms, params) + non_inferiority(arms, params)
    decision = decide(claims)
    return {
        "format": 1,
        "candidate": CANDIDATE,
        "decision": decision,
        "reasons": _reasons(arms, claims, decision),
        "claims": [asdict(claim) for claim in claims],
        "arms": {name: _summary(arm, arms if name in arms else shown, params) for name, arm in shown.items()},
        "direct_control": "direct" in arms,
    }


def decision_of(judged: Mapping[str, Any]) -> Decision:
    """The decision that follows from the claims of a verdict.json, regardless of the decision the file states.

    Raises EvaluationError when the claims are malformed, or when none compares the candidate with one of its rivals.
    """
    try:
        claims = TypeAdapter(list[Claim]).validate_python(judged["claims"])
        expected = rivals(arm_names(JUDGED if judged["direct_control"] else ["shadow"]))
    except (KeyError, TypeError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error} is missing"
        raise EvaluationError(
            f"the verdict's claims cannot be read ({problem}); run `shadowft verdict` again"
        ) from None
    compared = {claim.against for claim in claims if claim.claim == "superiority" and claim.arm == CANDIDATE}
    if missing := [name for name in expected if name not in compared]:
        raise EvaluationError(
            f"the verdict compares {CANDIDATE} with {sorted(compared) or 'nothing'}, not with {missing[0]}; run "
            "`shadowft verdict` again"
        )
    return decide(claims)


def _summary(arm: Arm, arms: Mapping[str, Arm], params: Verdict) -> dict[str, Any]:
    """Means of one arm with intervals: each task, the domain, the guards together, and everything."""

    def over(tasks: list[str]) -> dict[str, Any] | None:
        if not tasks:
            return None
        items = [item_scores(arm, task) for task in tasks]
        ranges = [score_range(arms, task) for task in tasks]
        low, high = interval(items, ranges, LEVEL, params.resamples, params.seed)
        return {"mean": mean_of_tasks(items), "interval": [low, high], "n": sum(i.size for i in items)}

    domain, guards = arm.tasks("domain"), arm.tasks("guard")
    return {
        "scale": arm.scale,
        "domain": over(domain),
        "guards": over(guards),
        "overall": over(domain + guards),
        "tasks": {task: over([task]) for task in domain + guards},
    }


def _reasons(arms: Mapping[str, Arm], claims: Sequence[Claim], decision: Decision) -> list[str]:
    instruct = arms["instruct"]
    reasons = [claim.reason for claim in claims]
    if decision == "hold" and any(claim.outcome == "tie" for claim in claims):
        reasons.append("a tie never promotes")
    if len(instruct.tasks("domain")) > 1:
        reasons += [
            f"domain by task against {claim.against}: "
            + ", ".join(f"{task} {difference:+.3f}" for task, difference in claim.by_task.items())
            for claim in claims
            if claim.role == "domain"
        ]
    open_scale = [task for task in sorted(instruct.scores) if score_range(arms, task) != (0.0, 1.0)]
    reasons += [
        f"{task}: the scores are {instruct.metrics[task]}, not shares; margin and worthwhile apply in that unit"
        for task in open_scale
    ]
    if len({instruct.metrics[task] for task in instruct.tasks("domain")}) > 1:
        reasons.append("the domain averages tasks with different metrics; read the tasks one by one")
    if not instruct.tasks("guard"):
        reasons.append("no guard task was measured: nothing is claimed about what the Instruct keeps")
    if "direct" not in arms:
        reasons.append("direct tuning was not run: nothing is claimed about it")
    return reasons
