"""The decision that follows from claims, also from those of a verdict.json that was written before."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shadowft_core.errors import EvaluationError
from shadowft_core.verdict.claims import Claim
from shadowft_core.verdict.scores import CHAMPIONS

Decision = Literal["promote", "hold", "undecided"]
Expected = tuple[str, str, str, tuple[str, ...] | None]  # kind, role, against, tasks


def decide(claims: Sequence[Claim]) -> Decision:
    """`promote` when every claim of the gate holds, `hold` when one is refuted or tied, or there is none, else
    `undecided`."""
    outcomes = {claim.outcome for claim in claims if claim.gate}
    if not outcomes or outcomes & {"worse", "tie", "harmed"}:
        return "hold"
    return "undecided" if "too few items" in outcomes else "promote"


def decision_of(judged: Mapping[str, Any]) -> Decision:
    """The decision that follows from the claims of a verdict.json, regardless of the decision the file states.

    Without a candidate, or if the candidate serves already, it is `hold`, whatever the claims.

    Raises EvaluationError when the claims are malformed, or when one is missing that the arms make necessary.
    """
    try:
        claims = TypeAdapter(list[Claim]).validate_python(judged["claims"])
        candidate = TypeAdapter(str | None).validate_python(judged["candidate"])
        expected = _first_format(judged) if judged["format"] == 1 else _second_format(judged, claims)
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error} is missing"
        raise EvaluationError(
            f"the verdict's claims cannot be read ({problem}); run `shadowft verdict` again"
        ) from None
    if candidate is None:
        return "hold"
    gate = [claim for claim in claims if claim.gate and claim.arm == candidate]
    for kind, role, against, tasks in expected:
        if not any(
            (claim.claim, claim.role, claim.against) == (kind, role, against) and tasks in (None, tuple(claim.tasks))
            for claim in gate
        ):
            where = f"{role} {', '.join(tasks)}" if role == "guard" and tasks else role
            raise EvaluationError(
                f"the verdict has no claim that decides {kind} of {candidate} over {against} on the {where}; run "
                "`shadowft verdict` again"
            )
    return "hold" if judged.get("serves") else decide(claims)


def _first_format(judged: Mapping[str, Any]) -> list[Expected]:
    """Format 1 had no champion; it asked for a gain over direct tuning too, where that was run."""
    rivals = ["instruct", "direct", "direct_scaled"] if judged["direct_control"] else ["instruct"]
    return [("superiority", "domain", rival, None) for rival in rivals]


def _second_format(judged: Mapping[str, Any], claims: Sequence[Claim]) -> list[Expected]:
    """What the gate needs, given the arms and their tasks. The claim of superiority tells the domain's tasks."""
    arms, candidate = judged["arms"], judged["candidate"]
    about = {name: mean["n"] for name, mean in arms["instruct"]["tasks"].items()}
    first = next(
        (c for c in claims if (c.claim, c.arm, c.against, c.role) == ("superiority", candidate, "instruct", "domain")),
        None,
    )
    domain = [] if first is None else first.tasks
    guards = [name for name in about if name not in domain]
    found: list[Expected] = [("superiority", "domain", "instruct", tuple(domain))]
    if guards or arms["instruct"]["guards"] is not None:
        found.append(("non-inferiority", "guards", "instruct", tuple(guards)))
    claimed = [c.tasks for c in claims if c.gate and (c.arm, c.against, c.role) == (candidate, "instruct", "guard")]
    each = claimed + [[task] for task in guards if task not in {name for tasks in claimed for name in tasks}]
    found += [("non-inferiority", "guard", "instruct", tuple(tasks)) for tasks in each]
    return found + [("non-inferiority", "domain", name, tuple(domain)) for name in CHAMPIONS if name in arms]
