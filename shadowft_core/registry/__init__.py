"""The memory of the house, in MLflow: a version is a recipe of a few kB; `champion` moves only on a positive verdict.

Weights never pass through the tracking server. Loading a version unpickles nothing. Registering and promoting are keyed
by content: repeating them changes nothing.
"""

import getpass
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shadowft_core.store as stores
from shadowft_core.checkpoint import bytes_digest, canonical_json, file_digest
from shadowft_core.errors import PromotionRefused, RegistryError
from shadowft_core.params import Params, Registry
from shadowft_core.registry.evidence import Evidence, Git, git_state
from shadowft_core.registry.rebuild import read_recipe, rebuild
from shadowft_core.registry.tracking import alias_of, connected, find, log, parsed, recipe_of, record_of, version_of

__all__ = [
    "Git",
    "Promotion",
    "Version",
    "git_state",
    "materialize",
    "preflight",
    "promote",
    "read_recipe",
    "rebuild",
    "register",
]

CANDIDATE, CHAMPION = "challenger", "champion"


@dataclass(frozen=True)
class Version:
    """A registered version; `new` is False when it had been registered before."""

    name: str
    number: int
    run_id: str
    decision: str
    new: bool


@dataclass(frozen=True)
class Promotion:
    """Where `champion` points now and where it pointed; `changed` is False when it pointed there already."""

    name: str
    number: int
    previous: int | None
    changed: bool


def preflight(params: Params) -> None:
    """Are registry and store there, may we write, does the store keep its promises? For the start of a run.

    Raises RegistryError, StoreUnreachable or StoreError within about 15 seconds each.
    """
    with connected(params.registry) as client:
        client.search_experiments(max_results=1)
    stores.check(params.store)


def register(
    params: Params,
    work: Path = Path("work"),
    lock: Path = Path("dvc.lock"),
    params_file: Path = Path("params.yaml"),
    git: Git | None = None,
) -> Version:
    """Record the run whose outputs are in `work` and register its candidate; the alias `challenger` moves to it.

    Keyed by the content of dvc.lock and of the recipe: registered before, the same version is returned and nothing new
    is logged. The delta is published first when it is not in the store. `git` is the state before the run.

    Raises RegistryError when outputs are missing or do not belong together, or MLflow does not answer; store errors.
    """
    evidence = Evidence(params, work, lock, params_file)
    if not stores.holds(evidence.delta, params.store):
        stores.publish(work / "delta" / "shadow", params.store)
    recipe = evidence.recipe()
    key = bytes_digest(canonical_json({"lock": file_digest(lock), "recipe": bytes_digest(canonical_json(recipe))}))
    tags = evidence.tags(git) | {"shadowft.key": key, "shadowft.recipe": bytes_digest(canonical_json(recipe))}
    name = params.registry.name
    with connected(params.registry) as client:
        found = version_of(client, name, key)
        made = found or log(client, params.registry, recipe, tags, evidence)
        first = version_of(client, name, key) or made
        version = Version(name, int(first.version), first.run_id, evidence.decision, new=found is None)
        client.set_registered_model_alias(name, CANDIDATE, str(version.number))
    print(
        f"{'registered' if version.new else 'registered before'}: {name} version {version.number}, verdict "
        f"{version.decision}, alias {CANDIDATE}",
        file=sys.stderr,
    )
    return version


def promote(registry: Registry, version: str = CANDIDATE, override: str | None = None) -> Promotion:
    """Point `champion` at a version (a number or an alias) whose recorded verdict says `promote`.

    `override` is the reason of a person who promotes against the verdict; it is recorded with their name.

    Raises PromotionRefused with the verdict's reasons; RegistryError for an unknown version or a damaged record.
    """
    if override is not None and not override.strip():
        raise PromotionRefused("--override needs a reason in words; it is recorded with the version")
    with connected(registry) as client:
        found = find(client, registry.name, version)
        recipe, verdict = record_of(client, found)
        decision, reasons = str(verdict.get("decision")), "; ".join(map(str, verdict.get("reasons", [])))
        if verdict.get("recipe_digest") != recipe["digest"]:
            raise RegistryError(
                f"{registry.name} version {found.version}: its verdict judged {verdict.get('recipe_digest')}, its "
                f"recipe makes {recipe['digest']}; register the run again"
            )
        if decision != "promote" and override is None:
            raise PromotionRefused(
                f"{registry.name} version {found.version}: the verdict is {decision}: {reasons or 'no reason given'}. "
                f"Nothing was moved; a person may promote with --override REASON"
            )
        before = alias_of(client, registry.name, CHAMPION)
        number = int(found.version)
        if before == number:
            return Promotion(registry.name, number, before, changed=False)
        notes = {"shadowft.promoted_by": _user(), "shadowft.replaced": str(before or "none")}
        if decision != "promote":
            notes |= {"shadowft.override.by": _user(), "shadowft.override.reason": str(override).strip()[:500]}
        for name, value in notes.items():  # first the record, then the pointer
            client.set_model_version_tag(registry.name, found.version, name, value)
        client.set_registered_model_alias(registry.name, CHAMPION, found.version)
        if (now := alias_of(client, registry.name, CHAMPION)) != number:
            raise RegistryError(
                f"{registry.name}: {CHAMPION} points at version {now}, {number} was set; someone else promoted at the "
                "same moment, look and repeat"
            )
    return Promotion(registry.name, number, before, changed=True)


def materialize(reference: str, out: Path, registry: Registry, instruct: Path | None = None) -> dict[str, Any]:
    """Rebuild a registered model, bit for bit, from its recipe: `models:/NAME@alias` or `models:/NAME/3`.

    `instruct` is the folder of the Instruct when its recorded reference cannot be resolved here. Returns the recipe.
    Raises RegistryError, store errors, PairError, or GraftError when the result is not what was registered; `out` is
    then absent.
    """
    name, version = parsed(reference)
    with connected(registry) as client:
        recipe = recipe_of(client, find(client, name, version))
    rebuild(recipe, out, instruct)
    return recipe


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
