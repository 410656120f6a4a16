"""The MLflow model registry. A version is a recipe of a few kB and a wheel; its run records the recipe's origin.

No weights are sent to the tracking server, and loading a version unpickles nothing. Registering is keyed by content, so
repeating it changes nothing. A registration stays in var/pending/ until MLflow has it.
"""

from dataclasses import dataclass
from pathlib import Path

import shadowft_core.store as stores
from shadowft_core.errors import RegistrationPendingError, RegistryError, say
from shadowft_core.files import canonical_json
from shadowft_core.params import Params, Registry, Store
from shadowft_core.registry.connection import connected
from shadowft_core.registry.copies import require_tags
from shadowft_core.registry.evidence import Evidence, Git, candidate_of, commit_date, git_state
from shadowft_core.registry.rebuild import cached, ingredients, read_recipe, rebuild, store_for
from shadowft_core.registry.registration import (
    PENDING,
    Registration,
    drop,
    keep,
    load,
    require_whole,
    waiting,
    waiting_in,
)
from shadowft_core.registry.tracking import deduplicate, describe, find, log, number_of, set_alias, tidy

__all__ = [
    "CANDIDATE",
    "PENDING",
    "Git",
    "Version",
    "cached",
    "candidate_of",
    "commit_date",
    "git_state",
    "ingredients",
    "preflight",
    "read_recipe",
    "rebuild",
    "register",
    "register_pending",
    "store_for",
    "waiting",
]

CANDIDATE = "challenger"


@dataclass(frozen=True)
class Version:
    """A registered version; `new` is False if an earlier call registered it, and `champion` is True if it was not
    registered again because it is the champion."""

    name: str
    number: int
    run_id: str
    decision: str
    new: bool
    champion: bool = False


def preflight(params: Params) -> None:
    """Require a store that is writable and passes the probe, and a registry that answers. For the start of a run.

    Raises StoreUnreachableError or StoreError, then RegistryError, within about 15 seconds each.
    """
    stores.require_writable(params.store)
    _require_answer(params.registry)


def register(
    params: Params,
    work: Path = Path("work"),
    lock: Path = Path("dvc.lock"),
    params_file: Path = Path("params.yaml"),
    git: Git | None = None,
    pending: Path = PENDING,
) -> Version:
    """Log the run whose outputs are in `work`, register its candidate and set the alias `challenger` to it.

    The key is the content of dvc.lock and of the recipe: if a version with this key exists, it is returned and nothing
    is logged. If two processes register the same run at once, the later version is marked as a duplicate of the first.
    Recipe, verdict and, unless the store has it, the delta are stored before anything is sent to MLflow. Registrations
    that wait in `pending` are sent first. `git` is the state of the checkout before the run.

    If run.json says that the candidate is the champion itself, nothing is logged and no alias moves: the version
    returned is the champion's.

    Raises RegistryError when there is no candidate, or outputs are missing or belong to different runs; store errors;
    RegistrationPendingError when MLflow does not accept the registration now. It then stays in `pending`, for
    `register_pending`.
    """
    evidence = Evidence(params, work, lock, params_file)
    if (number := evidence.champion) is not None:
        return _champion(params.registry, number, evidence, pending)
    if not stores.holds(evidence.delta, params.store):
        stores.publish(evidence.delta_folder, params.store)
    registration = evidence.registration(git)
    _record(registration, params.store)
    kept = keep(registration, pending)
    try:
        sent, problems = _send_waiting(params.registry, pending)
        if kept in problems:
            raise problems[kept]
        return sent.get(registration.key) or _send(params.registry, registration)
    except RegistryError as error:
        raise RegistrationPendingError(
            f"{error}. The registration is kept in {kept}; `shadowft register --pending` sends it"
        ) from None


def register_pending(registry: Registry, pending: Path = PENDING) -> list[Version]:
    """Send the waiting registrations, oldest first. Safe to repeat and to race.

    Raises RegistrationPendingError when MLflow does not answer, or refuses one of them; the others are then sent.
    """
    try:
        sent, problems = _send_waiting(registry, pending)
    except RegistryError as error:
        raise RegistrationPendingError(f"{error}. {len(waiting_in(pending))} registrations wait in {pending}") from None
    if problems:
        raise RegistrationPendingError("; ".join(f"{folder}: {error}" for folder, error in problems.items()))
    return list(sent.values())


def _champion(registry: Registry, number: int, evidence: Evidence, pending: Path) -> Version:
    """The champion's version, which is the candidate's too; sends what waits. Raises as `register` does."""
    name, model = registry.name, evidence.graft["digest"]
    about = f"the candidate is the champion, {name} version {number}"
    try:
        _require_answer(registry)
        _send_waiting(registry, pending)
    except RegistryError as error:
        raise RegistrationPendingError(
            f"{error}. Nothing new is to be registered: {about}; {len(waiting_in(pending))} registrations wait in "
            f"{pending}"
        ) from None
    with connected(registry) as client:
        found = find(client, name, str(number))
    if (recorded := found.tags.get("shadowft.model")) != model:
        raise RegistryError(
            f"{name} version {number}: its model is {recorded}, run.json has the champion {model}; run "
            f"`shadowft reconcile {name}`, then the stage look again"
        )
    say(f"nothing new is registered: {about}")
    return Version(name, number, found.run_id, evidence.decision, new=False, champion=True)


def _send_waiting(registry: Registry, pending: Path) -> tuple[dict[str, Version], dict[Path, RegistryError]]:
    """Versions by key, and the error of each registration that MLflow refused.

    Raises RegistryError if MLflow is down.
    """
    sent: dict[str, Version] = {}
    problems: dict[Path, RegistryError] = {}
    waiting = waiting_in(pending)
    if waiting:
        _require_answer(registry)
    for folder in waiting:
        try:
            if (registration := load(folder)) is not None:
                sent[registration.key] = _send(registry, registration)
                drop(folder)
        except RegistryError as error:
            problems[folder] = error
    return sent, problems


def _record(registration: Registration, store: Store) -> None:
    """Store recipe and verdict, where `promote` reads them; MLflow has only copies for people.

    Raises RegistryError when verdict.json changed meanwhile.
    """
    verdict = stores.keep_record(registration.files["verdict.json"], store)
    if verdict != registration.recipe["verdict"]["digest"]:
        raise RegistryError(
            f"verdict.json changed while it was registered: its digest was "
            f"{registration.recipe['verdict']['digest']}, now {verdict}; register the run again"
        )
    stores.keep_record(canonical_json(registration.recipe), store)


def _send(registry: Registry, registration: Registration) -> Version:
    name, key = registration.name, registration.key
    require_whole(registration)
    with connected(registry) as client:
        first, logged = deduplicate(client, name, key), None
        if first is None:
            logged = log(client, registry, registration)
            first = deduplicate(client, name, key)
        if first is None:
            raise RegistryError(f"{name}: the version just made was deleted; run `shadowft register` again")
        require_tags(first, registration.recipe)
        version = Version(name, number_of(first), first.run_id, registration.decision, new=first.run_id == logged)
        describe(client, first)
        set_alias(client, name, CANDIDATE, version.number)
        tidy(client, name, key)
    say(
        f"{'registered' if version.new else 'registered before'}: {name} version {version.number}, verdict "
        f"{version.decision}, alias {CANDIDATE}"
    )
    return version


def _require_answer(registry: Registry) -> None:
    with connected(registry) as client:
        client.search_experiments(max_results=1)
