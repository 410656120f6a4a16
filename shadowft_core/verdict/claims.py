"""Claims: paired comparisons of two arms, each with an outcome and a sentence.

Superiority: on the domain one arm beats another. Non-inferiority: an arm loses less than a margin against another. The
claims of the gate must all hold, so none is adjusted for the others (intersection-union test, Berger 1982). Claims
about the method are adjusted for each other (Holm 1979) and do not gate, unless `verdict.require` names them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from shadowft_core.errors import EvaluationError
from shadowft_core.params import Verdict
from shadowft_core.verdict.comparison import Comparison, Limit
from shadowft_core.verdict.scorefiles import Count
from shadowft_core.verdict.scores import CHAMPIONS, Arm, routes_of
from shadowft_core.verdict.statistics import holm

EACH = 0.01  # level of the claim about a single guard: one that is harmed by its margin passes in 1 of 100 verdicts

Kind = Literal["superiority", "non-inferiority"]
Difference = Annotated[float, Field(ge=-1e100, le=1e100)]
"""of two scores, also in units of a small margin; a figure of larger ones cannot be drawn"""
Outcome = Literal["better", "worse", "tie", "passed", "harmed", "too few items"]


@dataclass(frozen=True)
class Claim:
    """One comparison. Differences are `arm` minus `against`, in score units, or in units of each task's margin."""

    claim: Kind
    arm: str
    against: str
    role: Literal["domain", "guards", "guard"]
    """guards: all of them together; guard: one alone"""
    tasks: list[str]
    n: Count  # distinct items
    difference: Difference  # mean of the task means
    interval: tuple[Difference, Difference]  # two-sided, 95 %
    p: float | None  # one-sided
    p_adjusted: float | None  # after Holm; equal to p for claims of the gate
    outcome: Outcome
    items_needed: int | None  # with too few items: about how many would show the effect that `reason` names
    by_task: dict[str, Difference]  # difference on each task, in score units
    reason: str  # the claim as a sentence
    # fields that verdict.json of format 1 lacks
    gate: bool = True  # the decision depends on it
    margin: Difference | None = None  # non-inferiority: the smallest loss that counts
    alpha: float | None = None  # one-sided level
    clusters: Count | None = None  # independent groups of items
    by_seed: dict[str, Difference] | None = (
        None  # claims about the method: the difference of each training seed, if several
    )


def gate(arms: Mapping[str, Arm], candidate: str, params: Verdict, alpha: float) -> list[Claim]:
    """The claims that must all hold: a gain over the Instruct at the level `alpha` of this look, no harm to the guards,
    together and each, and no loss against earlier champions."""
    domain, guards = arms[candidate].tasks("domain"), arms[candidate].tasks("guard")
    gain = Comparison(arms, candidate, "instruct", domain, params, "worthwhile")
    p = gain.p_better(params)
    found = [_superiority(gain, alpha, p, p)]
    if guards:
        found.append(_non_inferiority(arms, candidate, "instruct", "guards", guards, params, "all guards together"))
    found += [
        _non_inferiority(arms, candidate, "instruct", "guard", tasks, params, f"guard {name}")
        for name, tasks in arms[candidate].guards().items()
    ]
    found += [
        _non_inferiority(arms, candidate, name, "domain", domain, params, "domain")
        for name in CHAMPIONS
        if name in arms
    ]
    return found


def method(arms: Mapping[str, Arm], candidate: str | None, params: Verdict) -> list[Claim]:
    """Superiority claims about ways of tuning: `method_pairs`, at `params.alpha` after Holm over all of them.

    They pool all training seeds. A claim that gates is about the first seed, which ships, and so are the others for
    which it is adjusted; it stands beside the pooled one.
    """
    pairs = method_pairs(arms, candidate, params)
    required = _required(arms, params) if candidate is not None else []
    pooled = _compared(arms, pairs, params, pooled=True)
    first = _compared(arms, pairs, params, pooled=False) if required else pooled
    found = []
    for pair, judged, told in zip(pairs, first, pooled, strict=True):
        if pair in required:
            found.append(_superiority(judged[0], params.alpha, *judged[1:], tests=len(pairs)))
        if pair not in required or told[0].by_seed:
            found.append(_superiority(told[0], params.alpha, *told[1:], tests=len(pairs), gate=False))
    return found


def _compared(
    arms: Mapping[str, Arm], pairs: list[tuple[str, str]], params: Verdict, *, pooled: bool
) -> list[tuple[Comparison, float, float]]:
    """Each comparison on the domain, with its p value before and after Holm."""
    tasks = arms["instruct"].tasks("domain")
    found = [Comparison(arms, *pair, tasks, params, "worthwhile", pooled=pooled) for pair in pairs]
    raw = [c.p_better(params) for c in found]
    return list(zip(found, raw, holm(raw), strict=True))


def method_pairs(arms: Mapping[str, Arm], candidate: str | None, params: Verdict) -> list[tuple[str, str]]:
    """(arm, rival): the candidate and the scaled graft against direct tuning, scaled arms of other routes, and what
    `verdict.require` names."""
    rivals = ["direct", *(f"{route}_scaled" for route in sorted(routes_of(arms)))]
    pairs = [
        (arm, rival)
        for arm in dict.fromkeys([candidate, "shadow_scaled"])
        for rival in rivals
        if arm in arms and rival in arms and routes_of([str(arm)]) != routes_of([rival])
    ]
    found = dict.fromkeys((str(arm), rival) for arm, rival in pairs if (rival, arm) != (candidate, "shadow_scaled"))
    return list(found | dict.fromkeys(_required(arms, params)))


def _required(arms: Mapping[str, Arm], params: Verdict) -> list[tuple[str, str]]:
    """The claims that `verdict.require` names. Raises EvaluationError if one cannot be read or names no arm."""
    found = []
    for text in params.require:
        arm, sign, rival = (part.strip() for part in text.partition(">"))
        missing = [name for name in (arm, rival) if name not in arms]
        if not sign or missing or arm == rival:
            raise EvaluationError(
                f"params verdict.require: {text!r} is not `ARM > ARM` with two of the arms {', '.join(arms)}; correct "
                "it, or evaluate the missing arm"
            )
        found.append((arm, rival))
    return found


def _superiority(
    c: Comparison, alpha: float, p: float, p_adjusted: float, *, tests: int = 1, gate: bool = True
) -> Claim:
    needed, effect, outcome = None, c.limit, _superiority_outcome(c, p_adjusted, alpha)
    if outcome == "too few items" and not c.by_seed:
        needed, effect = _needed(c, alpha / tests)
    sentence = f"{c.sentence('domain')}, p {_p(p_adjusted)}: {outcome}"
    if needed:
        sentence += f" ({c.n} items; about {needed} would show a gain of {effect:g}{_unit(c)})"
    elif outcome == "too few items" and c.by_seed:
        sentence += f" ({c.n} items and {len(c.by_seed)} seeds; more of both would tell)"
    return _claim(c, "superiority", "domain", outcome, sentence, (p, p_adjusted), needed, gate, None, alpha)


def _superiority_outcome(c: Comparison, p_adjusted: float, alpha: float) -> Outcome:
    high = c.interval[1]
    if p_adjusted <= alpha:  # a proven gain comes first: it is never a tie
        return "better"
    if high < 0:
        return "worse"
    if high < c.limit:  # a gain worth shipping is excluded
        return "tie"
    return "too few items"


def _non_inferiority(
    arms: Mapping[str, Arm],
    candidate: str,
    against: str,
    role: Literal["domain", "guards", "guard"],
    tasks: list[str],
    params: Verdict,
    subject: str,
) -> Claim:
    """A loss of the margin or more must be excluded. `subject` begins the sentence."""
    kind: Limit = "margin_each" if role == "guard" else "margin"
    alpha = EACH if role == "guard" else params.alpha
    c = Comparison(arms, candidate, against, tasks, params, kind)
    p = 0.0 if c.same else c.sample.p_above(-c.limit)
    outcome: Outcome = "too few items"
    needed, effect = None, 0.0
    if p <= alpha:
        outcome = "passed"
    elif c.interval[1] < -c.limit:
        outcome = "worse" if role == "domain" else "harmed"
    else:
        needed, effect = _needed(c, alpha)
    sentence = f"{c.sentence(subject)}, margin {c.limit:g}{_unit(c)}: {outcome}"
    if needed:
        loss = f"{c.limit - effect:g}{_unit(c)}" if effect < c.limit else "nothing"
        sentence += f" ({c.n} items; about {needed} would let a candidate pass that loses {loss})"
    return _claim(c, "non-inferiority", role, outcome, sentence, (p, p), needed, True, c.limit, alpha)


def _needed(c: Comparison, alpha: float) -> tuple[int | None, float]:
    """How many items would show an effect (distance from the null) of `c.limit`, and that effect.

    If there are that many already, the effect is a half or a quarter of it; None if that many suffice for a quarter.
    """
    for effect in (c.limit, c.limit / 2, c.limit / 4):
        needed = c.sample.items_to_detect(effect, alpha)
        if needed > c.n:
            return needed, effect
    return None, 0.0


def _claim(
    c: Comparison,
    kind: Kind,
    role: Literal["domain", "guards", "guard"],
    outcome: Outcome,
    reason: str,
    p: tuple[float, float],
    items_needed: int | None,
    gate: bool,
    margin: float | None,
    alpha: float,
) -> Claim:
    return Claim(
        claim=kind,
        arm=c.arm,
        against=c.against,
        role=role,
        tasks=c.tasks,
        n=c.n,
        difference=c.difference,
        interval=c.interval,
        p=p[0],
        p_adjusted=p[1],
        outcome=outcome,
        items_needed=items_needed,
        by_task=c.by_task,
        reason=reason,
        gate=gate,
        margin=margin,
        alpha=alpha,
        clusters=c.clusters,
        by_seed=c.by_seed or None,
    )


def _unit(c: Comparison) -> str:
    return f" times each task's {c.kind}" if c.in_units else ""


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"
