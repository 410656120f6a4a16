"""The head of the page, in plain words: what was decided, why, what would ship and what it replaces."""

from collections.abc import Mapping, Sequence
from typing import Any

STATES = {
    "better": "holds",
    "passed": "holds",
    "worse": "refuted",
    "harmed": "refuted",
    "tie": "refuted",
    "too few items": "open",
}
ORDER = ("refuted", "open", "holds")
MARKS = {"holds": "✓", "refuted": "✗", "open": "?"}
NAMES = {"instruct": "the untouched Instruct", "champion": "the champion", "best_champion": "the best earlier champion"}
HELPED = {
    "better": "Yes: each at the scale chosen on dev items, the graft scores higher on the domain than direct tuning.",
    "worse": "No: each at the scale chosen on dev items, the graft scores lower on the domain than direct tuning.",
    "tie": "Not by much: each at the scale chosen on dev items, the graft has no worthwhile lead over direct tuning.",
    "too few items": "Not known: there are too few items to tell the graft from direct tuning on the domain.",
    "not compared": "Not known: the graft was not compared with direct tuning, scaled back.",
}
REVERSED = {"better": "worse", "worse": "better", "tie": "too few items"}  # direct tuning against the graft
LISTED = 3  # causes in the sentence under the decision
SHOWN = 8  # guards that hold, each with its numbers; the others can be unfolded


def decided(
    verdict: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`lead`, one sentence; `gate`, `more` (guards that hold, if there are many) and `method`, the claims with mark and
    question; `helped`, the sentence about the graft; `remarks`, the other reasons; `stays`, what serves now; `gains`,
    the two numbers that matter most."""
    claims = [_asked(claim) for claim in verdict["claims"]]
    stays = _stays(verdict, heads, run)
    gate = [claim for claim in claims if claim["gate"]]
    said = {claim["reason"] for claim in claims}
    remarks = [reason for reason in verdict["reasons"] if reason.removeprefix("not part of the decision: ") not in said]
    holding = [claim for claim in gate if claim["role"] == "guard" and claim["state"] == "holds"]
    more = holding[SHOWN:] if len(holding) > SHOWN + 1 else []
    shown = [claim for claim in gate if claim not in more]
    return {
        "lead": _lead(verdict, gate, stays, heads),
        "gate": sorted(shown, key=lambda claim: ORDER.index(claim["state"])),
        "more": more,
        "method": [claim for claim in claims if not claim["gate"]],
        "helped": _helped(claims),
        "remarks": remarks,
        "stays": stays,
        "gains": _gains(verdict),
    }


def _asked(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim with `state`, `mark`, and `asked`: what must hold. Format 1 has neither gate nor margin."""
    state = STATES.get(claim["outcome"], "open")
    return {"gate": True, "margin": None, "alpha": None, "clusters": None, **claim} | {
        "state": state,
        "mark": MARKS[state],
        "asked": _question(claim),
    }


def _question(claim: Mapping[str, Any]) -> str:
    against, margin = NAMES.get(claim["against"], claim["against"]), claim.get("margin")
    limit = "no more than allowed" if margin is None else f"less than {margin:g}"
    if claim["claim"] == "superiority":
        over = f", over {len(claim['by_seed'])} training seeds" if claim.get("by_seed") else ""
        return f"{claim['arm']} scores higher than {against} on the domain{over}"
    if claim["role"] == "domain":
        return f"{claim['arm']} loses {limit} against {against} on the domain"
    if claim["role"] == "guards":
        return f"the guards, taken together, lose {limit}"
    return f"guard {', '.join(claim['tasks'])} loses {limit}"


def _lead(
    verdict: Mapping[str, Any],
    gate: Sequence[Mapping[str, Any]],
    stays: Mapping[str, Any],
    heads: Mapping[str, Mapping[str, Any]],
) -> str:
    candidate, name = verdict["candidate"], stays["name"]
    if candidate is None:
        return (
            "Nothing ships. No arm that keeps the guards beats the Instruct on the dev items, so there is no "
            f"candidate. {_upper(name)} stays."
        )
    scale = verdict["arms"][candidate]["scale"]
    arm = candidate if scale is None else f"{candidate} (scale {scale:g})"
    serves = stays["arm"] == "champion" and heads[candidate]["model_digest"] == stays["digest"]
    if verdict["decision"] == "hold" and serves:
        return f"Nothing to ship: {arm} is the same model as {name}, which stays."
    if verdict["decision"] == "promote":
        return f"Every claim holds: {arm} may become champion. It would replace {name}."
    if verdict["decision"] == "undecided":
        waiting = _some([f"whether {claim['asked']}" for claim in gate if claim["state"] == "open"])
        return f"Do not ship {arm} yet: there are too few items to tell {waiting}. Until then {name} stays."
    causes = _some([_refuted(claim) for claim in gate if claim["state"] == "refuted"])
    return f"Do not ship {arm}: {causes or 'the verdict refuses it'}. {_upper(name)} stays."


def _helped(claims: Sequence[Mapping[str, Any]]) -> str:
    """Whether the graft leads its control: direct tuning that chooses its scale by the same rule. Of two claims about
    the same arms, the last one pools all training seeds."""
    outcome = "not compared"
    for claim in claims:
        if (claim["arm"], claim["against"]) == ("shadow_scaled", "direct_scaled"):
            outcome = claim["outcome"]
        elif (claim["arm"], claim["against"], claim["claim"]) == ("direct_scaled", "shadow_scaled", "superiority"):
            outcome = REVERSED.get(claim["outcome"], claim["outcome"])
    return HELPED[outcome]


def _refuted(claim: Mapping[str, Any]) -> str:
    against = NAMES.get(claim["against"], claim["against"])
    if claim["role"] == "guards":
        return "it harms the guards, taken together"
    if claim["role"] == "guard":
        return f"it harms the guard {', '.join(claim['tasks'])}"
    if claim["outcome"] == "tie":
        return f"it gains too little over {against} on the domain to be worth shipping"
    return f"it is worse than {against} on the domain"


def _stays(
    verdict: Mapping[str, Any], heads: Mapping[str, Mapping[str, Any]], run: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What serves now, as far as the files tell: `arm`, `name`, `digest` and a `note`."""
    if "champion" in verdict["arms"]:
        version = heads["champion"].get("version", ((run or {}).get("champion") or {}).get("version"))
        name = "the champion" if version is None else f"the champion, version {version},"
        return {"arm": "champion", "name": name.rstrip(","), "digest": heads["champion"]["model_digest"], "note": ""}
    note = "no champion was scored on these items"
    if verdict["format"] == 1:  # these compared with the Instruct and its direct tuning only
        return {"arm": None, "name": "the champion", "digest": None, "note": note}
    digest = heads["instruct"]["model_digest"]
    return {"arm": "instruct", "name": NAMES["instruct"], "digest": digest, "note": note}


def _gains(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Domain and guards of Instruct and candidate: means, and the difference with its interval where a claim has it."""
    candidate, arms = verdict["candidate"], verdict["arms"]
    if candidate is None:
        return []
    found = []
    for group, title in (("domain", "learnt: domain"), ("guards", "kept: guards")):
        before, after = arms["instruct"][group], arms[candidate][group]
        if before is None:
            continue
        claim = next(
            (
                claim
                for claim in verdict["claims"]
                if (claim["role"], claim["arm"], claim["against"]) == (group, candidate, "instruct")
            ),
            None,
        )
        own_units = claim is not None and abs(claim["difference"] - (after["mean"] - before["mean"])) < 1e-6
        found.append(
            {
                "title": title,
                "before": before["mean"],
                "after": after["mean"],
                "difference": after["mean"] - before["mean"],
                "interval": claim["interval"] if claim and own_units else None,
                "state": None if claim is None else STATES.get(claim["outcome"], "open"),
                "outcome": None if claim is None else claim["outcome"],
            }
        )
    return found


def _some(sentences: Sequence[str]) -> str:
    more = len(sentences) - LISTED
    return "; ".join(sentences[:LISTED]) + (f"; and {more} more" if more > 0 else "")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
