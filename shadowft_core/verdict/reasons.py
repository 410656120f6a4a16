"""The reasons of a verdict as sentences: its claims, then remarks that help a reader to weigh them."""

from collections.abc import Mapping, Sequence

from shadowft_core.params import Verdict
from shadowft_core.verdict.claims import Claim
from shadowft_core.verdict.comparison import item_scores, score_range
from shadowft_core.verdict.decision import Decision
from shadowft_core.verdict.looks import Look
from shadowft_core.verdict.scores import CHAMPIONS, Arm, routes_of
from shadowft_core.verdict.statistics import mean_of_tasks


def reasons(
    arms: Mapping[str, Arm], claims: Sequence[Claim], decision: Decision, look: Look, params: Verdict
) -> list[str]:
    """The claims of the gate, those about the method, and remarks."""
    gate = [claim for claim in claims if claim.gate]
    method = [claim for claim in claims if not claim.gate]
    found = [claim.reason for claim in gate]
    if decision == "hold" and any(claim.outcome == "tie" for claim in gate):
        found.append("a tie never promotes")
    found += [f"not part of the decision: {claim.reason}" for claim in method]
    return (
        found
        + _by_seed(arms)
        + _by_task(arms["instruct"], claims)
        + _units(arms["instruct"], arms, params)
        + _remarks(arms, look, params)
    )


def _by_seed(arms: Mapping[str, Arm]) -> list[str]:
    """The domain means of the seeds, or what a single seed cannot tell."""
    routes = [arm for name, arm in arms.items() if name not in ("instruct", *CHAMPIONS)]
    several = [arm for arm in routes if arm.further]
    found = []
    for arm in several:
        tasks = arm.tasks("domain")
        means = [mean_of_tasks([item_scores(run, task) for task in tasks]) for run in arm.runs]
        each = ", ".join(f"seed {run.seed} {mean:.3f}" for run, mean in zip(arm.runs, means, strict=True))
        found.append(f"domain: {arm.name} by seed: {each}; the first is judged, because it ships")
    single = [arm.name for arm in routes if not arm.further]
    if len(routes) > 1 and single:
        who = "every arm was" if not several else f"{', '.join(single)} {'was' if len(single) == 1 else 'were'}"
        found.append(
            f"{who} trained with one seed, which cannot tell how much of a difference between two ways of tuning is "
            "due to chance in training (train.seeds)"
        )
    return found


def _by_task(instruct: Arm, claims: Sequence[Claim]) -> list[str]:
    if len(instruct.tasks("domain")) == 1:
        return []
    return [
        f"domain by task, {claim.arm} against {claim.against}: "
        + ", ".join(f"{task} {difference:+.3f}" for task, difference in claim.by_task.items())
        for claim in claims
        if claim.role == "domain"
    ]


def _units(instruct: Arm, arms: Mapping[str, Arm], params: Verdict) -> list[str]:
    open_scale = [task for task in sorted(instruct.scores) if score_range(arms.values(), task) != (0.0, 1.0)]
    found = [
        f"{task}: the scores are {metric}, not shares, yet the thresholds for shares apply to it; set "
        f"verdict.metrics.{metric}"
        for task in open_scale
        if (metric := instruct.metrics[task]) not in params.metrics
    ]
    found += [
        f"{task}: the scores are {metric}, not shares; its thresholds are those of verdict.metrics"
        for task in open_scale
        if (metric := instruct.metrics[task]) in params.metrics
    ]
    if len({instruct.metrics[task] for task in instruct.tasks("domain")}) > 1:
        found.append("the domain averages tasks with different metrics; read the tasks one by one")
    return found


def _remarks(arms: Mapping[str, Arm], look: Look, params: Verdict) -> list[str]:
    found = []
    if look.number > 1:
        record = look.record(params.alpha)
        found.append(
            f"look {look.number} at these test items: a gain must be shown at level {record['alpha']:.2g}, and "
            f"{record['left']:.2g} of {params.alpha:g} is left for all later looks together; fresh items start again"
        )
    if not arms["instruct"].tasks("guard"):
        found.append("no guard task was measured: nothing is claimed about forgetting")
    if "direct" not in arms:
        found.append("the route direct was not run: nothing is claimed about it")
    by_model: dict[str, list[str]] = {}
    for name, arm in arms.items():
        if name not in CHAMPIONS:
            by_model.setdefault(arm.model_digest, []).append(name)
    found += [
        f"{', '.join(names)}: the same model, so these routes are one way of tuning"
        for names in by_model.values()
        if len(routes_of(names)) > 1 and "instruct" not in names
    ]
    return found
