"""The stage look: counts the verdict that follows as a look at its test items, and writes run.json.

run.json tells the verdict what DVC does not watch: which look this is, which looks came before, and the champions. It
follows from the look's entry in the store and from the score folders, so a run that changes nothing writes the same
bytes: commit and costs are those of the first time that this candidate was judged on these items.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import write_json_atomically
from shadowft_core.params import Registry, Store
from shadowft_core.promotion.costs import costs_of
from shadowft_core.promotion.looks import Cost, ItemSet, Looks
from shadowft_core.promotion.recorded import champions_on
from shadowft_core.registry import commit_date, git_state
from shadowft_core.verdict.candidate import read_candidate
from shadowft_core.verdict.comparison import item_scores
from shadowft_core.verdict.scorefiles import read_considered, read_head
from shadowft_core.verdict.scores import CHAMPIONS, Arm, read_arms
from shadowft_core.verdict.statistics import mean_of_tasks

GROUP = "champion"  # folder of the champions' scores


def look(
    scores: Path,
    routes: Sequence[str],
    registry: Registry,
    store: Store,
    out: Path,
    candidate: Path | None = None,
    recipes: Iterable[Path] = (),
) -> None:
    """Append the look of a candidate at the domain's items, unless the store has it, and write run.json to `out`.

    `candidate` is candidate.json, which may name no arm: then there is no look. Without it, the candidate is the arm
    that is the model of one of `recipes`.

    Raises EvaluationError, before anything is appended, for scores that no verdict could be made of, or if the champion
    in the ledger is not the one that was scored; LedgerError, RegistryError, store errors. A look that cannot be
    counted is an error, never a free look.
    """
    present = [name for name in CHAMPIONS if (scores / GROUP / name / "scores.json").is_file()]
    arms = read_arms(scores, routes, present)
    instruct = arms["instruct"]
    champions = {name: _version(scores / GROUP / name) if name in present else None for name in CHAMPIONS}
    listed = read_considered(scores / GROUP / "champions.json")
    _require_champion(registry, store, scores / GROUP, instruct.model_digest, champions["champion"])
    chosen = read_candidate(candidate, recipes, arms)
    items = ItemSet.of_arm(instruct if chosen.arm is None else arms[chosen.arm])
    looks = Looks(store, instruct.model_digest)
    git, means = git_state(Path()), {}
    if chosen.arm is not None:
        known = looks.means(items)
        means = {one.digest: one.mean for one in listed.considered if one.digest not in known}
        means |= {arms[chosen.arm].model_digest: _mean(arms[chosen.arm])}
    now: dict[str, Any] = {
        "commit": git.commit if git else None,
        "dirty": git.dirty if git else None,
        "costs": [Cost(**cost) for cost in costs_of()],
    }
    found = looks.take(items, chosen.digest, model_name=registry.name, means=means, **now)
    told: dict[str, Any] = now if found.look is None else {name: getattr(found.look, name) for name in now}
    facts = {
        "format": 1,
        "candidate": chosen.digest,
        "items": items.digest,
        "look": found.number,
        "earlier": [
            {
                "number": one.number,
                "candidate": one.look.candidate,
                "model_name": one.look.model_name,
                "commit": one.look.commit,
                "overlap": one.overlap,
            }
            for one in found.earlier
        ],
        **champions,
        "skipped": [one.model_dump() for one in listed.skipped],
        **told,
        "date": commit_date(told["commit"]) if told["commit"] else None,
        "costs": [cost.model_dump() for cost in told["costs"]],
    }
    write_json_atomically(out, facts)


def _version(folder: Path) -> dict[str, Any]:
    head = read_head(folder)
    return {"version": head.version, "digest": head.model_digest}


def _require_champion(
    registry: Registry, store: Store, folder: Path, instruct: str, scored: dict[str, Any] | None
) -> None:
    """Raise EvaluationError unless the champion in the ledger, if it is a graft on this Instruct, was scored."""
    current = champions_on(registry, store, instruct).current
    expected = None if current is None else {"version": current.version, "digest": current.digest}
    if scored != expected:
        raise EvaluationError(
            f"{folder}: the champion of {registry.name} is {_named(expected)}, its scores are of {_named(scored)}; "
            f"run `shadowft evaluate --champion --name {registry.name} --instruct ... --data ... --out {folder}`"
        )


def _named(version: dict[str, Any] | None) -> str:
    return "none on this Instruct" if version is None else f"version {version['version']}, {version['digest']}"


def _mean(arm: Arm) -> float:
    """Mean of the domain's task means, as `champions.json` has it."""
    return mean_of_tasks([item_scores(arm, task) for task in arm.tasks("domain")])
