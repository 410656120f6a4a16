"""Is the graft better? Paired claims on item scores, and one decision out of them.

Superiority: on the domain the candidate beats the untouched Instruct and, where the control was run, direct tuning as
it is and scaled back (one-sided paired tests, Holm across them). Non-inferiority: on each guard task the candidate
loses less than `margin` against the Instruct. `promote` needs every claim; a tie never promotes; a claim the items
cannot settle makes the decision `undecided`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from shadowft_core.errors import EvaluationError
from shadowft_core.files import write_json_atomically
from shadowft_core.params import Verdict
from shadowft_core.verdict.scores import Arm, arm_names, read_arms, recipe_digest
from shadowft_core.verdict.statistics import Items, holm, interval, items_to_detect, mean_of_tasks, p_greater

CANDIDATE = "shadow_scaled"
LEVEL = 0.95  # of every interval

Outcome = Literal["better", "worse", "tie", "passed", "harmed", "too few items"]
Decision = Literal["promote", "hold", "undecided"]


@dataclass(frozen=True)
class Claim:
    """One comparison of the candidate with another arm. Differences are candidate minus other, in score units."""

    claim: Literal["superiority", "non-inferiority"]
    arm: str
    against: str
    role: Literal["domain", "guard"]
    tasks: list[str]
    n: int  # distinct items
    difference: float  # mean of the task means
    interval: tuple[float, float]  # two-sided, 95 %
    p: float | None  # superiority only, one-sided
    p_adjusted: float | None  # after Holm
    outcome: Outcome
    items_needed: int | None  # when the items were too few: about how many would settle the claim
    by_task: dict[str, float]  # difference on each task
    reason: str  # the claim as a sentence


def verdict(
    scores: Path, recipe: Path, routes: Sequence[str], params: Verdict, out: Path, metrics: Path | None = None
) -> None:
    """Judge the arms under `scores` and write verdict.json (docs/architecture.md); its numbers also to `metrics`.

    Raises EvaluationError when a score folder is missing or damaged, when the arms did not answer the same items under
    the same template, or when the candidate that was scored is not the model of `recipe`.
    """
    arms = read_arms(scores, routes)
    expected = recipe_digest(recipe)
    found = arms[CANDIDATE].model_digest
    if found != expected:
        raise EvaluationError(
            f"{recipe}: makes model {expected}, but the scores of {CANDIDATE} are of {found}; "
            "evaluate the grafted folder again"
        )
    judged = judge(arms, params)
    write_json_atomically(out, judged | {"recipe_digest": expected})
    if metrics is not None:
        write_json_atomically(metrics, numbers(judged))


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a verdict by which runs are compared, flat. What was not measured is left out, never written as 0.

    `domain.ARM` and `guards.ARM` are mean scores, `worst_guard` is the candidate minus the Instruct on the guard task
    that lost most, `scale` is the candidate's.
    """
    made: dict[str, float | None] = {"scale": found["arms"][CANDIDATE]["scale"]}
    for group in ("domain", "guards"):
        made |= {f"{group}.{name}": (arm[group] or {}).get("mean") for name, arm in found["arms"].items()}
    guards = [claim["difference"] for claim in found["claims"] if claim["role"] == "guard"]
    made["worst_guard"] = min(guards, default=None)
    return {name: value for name, value in made.items() if value is not None}


def judge(arms: Mapping[str, Arm], params: Verdict) -> dict[str, Any]:
    """The whole verdict over comparable arms, ready for JSON; see `read_arms` for what comparable means.

    Raises EvaluationError when no task has the role domain: then there is nothing to be better at.
    """
    if not arms["instruct"].tasks("domain"):
        raise EvaluationError("scores of instruct: no task has the role domain; name one in params evaluate.domain")
    arms = {name: arms[name] for name in arm_names(["shadow", "direct"]) if name in arms}
    claims = superiority(arms, params) + non_inferiority(arms, params)
    decision = decide(claims)
    return {
        "format": 1,
        "candidate": CANDIDATE,
        "decision": decision,
        "reasons": _reasons(arms, claims, decision),
        "claims": [asdict(claim) for claim in claims],
        "arms": {name: _summary(arm, arms, params) for name, arm in arms.items()},
        "direct_control": "direct" in arms,
    }


def superiority(arms: Mapping[str, Arm], params: Verdict) -> list[Claim]:
    """The candidate against the Instruct and, when present, both direct arms, on the domain."""
    rivals = _rivals(arms)
    tasks = arms[CANDIDATE].tasks("domain")
    compared = [_Comparison(arms, rival, tasks, params) for rival in rivals]
    p_values = [p_greater(c.differences, params.resamples, params.seed) for c in compared]
    alpha = params.alpha / len(rivals)  # Holm's first and hardest step
    claims = []
    for rival, c, raw, p in zip(rivals, compared, p_values, holm(p_values), strict=True):
        low, high = c.interval
        needed = None
        outcome: Outcome
        if -params.worthwhile < low and high < params.worthwhile:
            outcome = "tie"
        elif high < 0:
            outcome = "worse"
        elif low > 0 and p <= params.alpha:
            outcome = "better"
        elif high < params.worthwhile:
            outcome = "tie"  # a gain worth shipping is excluded
        else:
            needed = items_to_detect(c.differences, c.ranges, params.worthwhile, alpha)
            outcome, needed = ("tie", None) if needed <= c.n else ("too few items", needed)
        sentence = f"{c.sentence('domain', rival)}, p {_p(p)}: {outcome}" + (
            f" ({c.n}; about {needed} would show a gain of {params.worthwhile:g})" if needed else ""
        )
        claims.append(c.claim(rival, outcome, sentence, items_needed=needed, p=raw, p_adjusted=p))
    return claims


def non_inferiority(arms: Mapping[str, Arm], params: Verdict) -> list[Claim]:
    """The candidate against the Instruct, on each guard task: a loss of `margin` or more must be excluded."""
    claims = []
    for task in arms[CANDIDATE].tasks("guard"):
        c = _Comparison(arms, "instruct", [task], params)
        low, high = c.interval
        needed = None
        outcome: Outcome
        if low > -params.margin:
            outcome = "passed"
        elif high < -params.margin:
            outcome = "harmed"
        else:
            outcome, needed = "too few items", _items_to_settle(c, params.margin)
        sentence = f"{c.sentence(f'guard {task}', 'instruct')}, margin {params.margin:g}: {outcome}" + (
            f" ({c.n}; about {needed} would settle it)" if needed else ""
        )
        claims.append(c.claim("instruct", outcome, sentence, items_needed=needed))
    return claims


def decide(claims: Sequence[Claim]) -> Decision:
    """`promote` when every claim holds, `hold` when one is refuted or tied, else `undecided`."""
    outcomes = {claim.outcome for claim in claims}
    if outcomes & {"worse", "tie", "harmed"}:
        return "hold"
    return "undecided" if "too few items" in outcomes else "promote"


def decision_of(found: Mapping[str, Any]) -> Decision:
    """The decision that the claims of a verdict.json make, whatever the file says it is.

    Raises EvaluationError when its claims are malformed, or none compares the candidate with a rival it was judged by.
    """
    try:
        claims = TypeAdapter(list[Claim]).validate_python(found["claims"])
        rivals = _rivals(arm_names(["shadow", "direct"] if found["direct_control"] else ["shadow"]))
    except (KeyError, TypeError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error} is missing"
        raise EvaluationError(
            f"the verdict's claims cannot be read ({problem}); run `shadowft verdict` again"
        ) from None
    compared = {claim.against for claim in claims if claim.claim == "superiority" and claim.arm == CANDIDATE}
    if lacking := [name for name in rivals if name not in compared]:
        raise EvaluationError(
            f"the verdict compares {CANDIDATE} with {sorted(compared) or 'nothing'}, not with {lacking[0]}; run "
            "`shadowft verdict` again"
        )
    return decide(claims)


def _rivals(arms: Iterable[str]) -> list[str]:
    """The arms that the candidate must beat on the domain."""
    return [name for name in arms if name == "instruct" or name.startswith("direct")]


class _Comparison:
    """The candidate minus one rival on some tasks, item by item."""

    def __init__(self, arms: Mapping[str, Arm], rival: str, tasks: list[str], params: Verdict) -> None:
        candidate, other = arms[CANDIDATE], arms[rival]
        self.tasks = tasks
        self.means = [mean_of_tasks([_items(arm, task) for task in tasks]) for arm in (candidate, other)]
        self.differences = [_items(candidate, task) - _items(other, task) for task in tasks]
        self.difference = mean_of_tasks(self.differences)
        self.n = sum(d.size for d in self.differences)
        self.ranges = [_largest(arms, task, d) for task, d in zip(tasks, self.differences, strict=True)]
        self.interval = (0.0, 0.0)  # the same weights giving the same scores: equal by identity, whatever the items
        if candidate.model_digest != other.model_digest or any(d.any() for d in self.differences):
            self.interval = interval(self.differences, self.ranges, LEVEL, params.resamples, params.seed)

    def sentence(self, subject: str, rival: str) -> str:
        mine, theirs = self.means
        low, high = self.interval
        return (
            f"{subject}: {CANDIDATE} {mine:.3f} against {rival} {theirs:.3f}, "
            f"{self.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
        )

    def claim(
        self,
        rival: str,
        outcome: Outcome,
        reason: str,
        *,
        items_needed: int | None,
        p: float | None = None,
        p_adjusted: float | None = None,
    ) -> Claim:
        return Claim(
            claim="non-inferiority" if p is None else "superiority",
            arm=CANDIDATE,
            against=rival,
            role="guard" if p is None else "domain",
            tasks=self.tasks,
            n=self.n,
            difference=self.difference,
            interval=self.interval,
            p=p,
            p_adjusted=p_adjusted,
            outcome=outcome,
            items_needed=items_needed,
            by_task={task: mean_of_tasks([d]) for task, d in zip(self.tasks, self.differences, strict=True)},
            reason=reason,
        )


def _items(arm: Arm, task: str) -> Items:
    """Scores in the order of the item digests, which is the same for every arm."""
    by_item = arm.scores[task]
    return np.array([by_item[item] for item in sorted(by_item)], dtype=np.float64)


def _span(arms: Mapping[str, Arm], task: str) -> tuple[float, float]:
    """[0, 1] when every score lies in it, as accuracies do; otherwise what was seen, over all arms."""
    seen = np.concatenate([_items(arm, task) for arm in arms.values()])
    low, high = float(seen.min()), float(seen.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _largest(arms: Mapping[str, Arm], task: str, differences: Items) -> tuple[float, float]:
    """The largest difference an item can make, both ways: 1 on [0, 1], the largest seen on an open scale."""
    largest = 1.0 if _span(arms, task) == (0.0, 1.0) else float(np.abs(differences).max())
    return -largest, largest


def _items_to_settle(c: _Comparison, margin: float) -> int:
    """Items at which the interval, shrinking with their square root around the same difference, leaves the margin."""
    low, high = c.interval
    half = c.difference - low if c.difference > -margin else high - c.difference
    gap = max(abs(c.difference + margin), half / 100)  # at the margin itself no number would do: say 10 000 times
    return max(c.n + 1, math.ceil(c.n * (half / gap) ** 2))


def _summary(arm: Arm, arms: Mapping[str, Arm], params: Verdict) -> dict[str, Any]:
    """Means of one arm with intervals: each task, the domain, the guards together, and everything."""

    def over(tasks: list[str]) -> dict[str, Any] | None:
        if not tasks:
            return None
        items = [_items(arm, task) for task in tasks]
        spans = [_span(arms, task) for task in tasks]
        low, high = interval(items, spans, LEVEL, params.resamples, params.seed)
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
    open_scale = [task for task in sorted(instruct.scores) if _span(arms, task) != (0.0, 1.0)]
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


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"
