"""The records of a version: its recipe and verdict in the store. MLflow has only copies for people.

The tag `shadowft.recipe` is the digest of a version's recipe. The recipe is read from the store and has the digest of
the verdict; every copy and tag in MLflow must agree. So a person who can write only to MLflow can give a version the
whole record of another run, but cannot change a record.
"""

from typing import Any

import shadowft_core.store as stores
from shadowft_core.errors import EvaluationError, RegistryError
from shadowft_core.params import Store
from shadowft_core.registry import copies, tracking
from shadowft_core.registry.rebuild import parse_recipe


def recipe_of(store: Store, version: Any) -> dict[str, Any]:
    """The recipe of a version, from the store. Raises RegistryError when it is missing or differs in MLflow."""
    digest = tracking.tag_of(version, "shadowft.recipe")
    raw = _record(store, version, "recipe", digest)
    recipe = parse_recipe(raw, f"store {store.uri}: recipe {digest}")
    copies.require_tags(version, recipe)
    copies.recipe_of(version, digest)
    return recipe


def judgement_of(client: Any, store: Store, version: Any) -> tuple[dict[str, Any], str, str]:
    """The recipe of a version, the decision that follows from its verdict's claims, and the reasons as one line, first
    those for which it is not promote.

    Raises RegistryError when a record is not in the store, when MLflow's copy or tag differs, when the verdict is of
    another model, or when its stated decision does not follow from its claims; store errors.
    """
    from shadowft_core.verdict import decision_of
    from shadowft_core.verdict.verdictfile import parse_verdict

    recipe = recipe_of(store, version)
    digest = recipe["verdict"]["digest"]
    raw = _record(store, version, "verdict", digest)
    copies.require_copy(version, "verdict.json", digest)
    copies.require_run_tags(client, version, recipe)
    where = f"{version.name} version {version.version}"
    verdict = parse_verdict(raw, f"{where}: its verdict", RegistryError)
    if verdict.get("recipe_digest") != recipe["digest"]:
        raise RegistryError(
            f"{where}: its verdict is of model {verdict.get('recipe_digest')}, its recipe is of {recipe['digest']}; "
            "register the run again"
        )
    if "arm" in recipe and verdict.get("candidate") != recipe["arm"]:
        raise RegistryError(
            f"{where}: its verdict is about {verdict.get('candidate')}, its recipe is of {recipe['arm']}; register the "
            "run again"
        )
    try:
        decision = decision_of(verdict)
    except EvaluationError as error:
        raise RegistryError(f"{where}: {error}, then register") from None
    for what, stated in (("verdict", verdict.get("decision")), ("recipe", recipe["verdict"].get("decision"))):
        if stated != decision:
            raise RegistryError(
                f"{where}: its {what} states {stated}, the claims of its verdict decide {decision}; run `shadowft "
                "verdict` again, then register"
            )
    open_claims = {
        claim["reason"]
        for claim in verdict["claims"]
        if claim.get("gate", True) and claim["outcome"] not in ("better", "passed")
    }
    reasons = sorted(verdict["reasons"], key=lambda reason: reason not in open_claims)
    return recipe, decision, "; ".join(reasons)


def _record(store: Store, version: Any, what: str, digest: str) -> bytes:
    found = stores.record(digest, store) if digest else None
    if found is None:
        raise RegistryError(
            f"{version.name} version {version.version}: its {what} {digest or '(no tag names one)'} is not in store "
            f"{store.uri}: it was registered before the store kept records, changed in MLflow, or registered with "
            "another store; run `shadowft register` for that run again, or set SHADOWFT_STORE_URI to its store"
        )
    return found
