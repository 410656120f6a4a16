"""What the page says about the run: looks at the test items, costs, lineage, and what was not tested."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadowft_core.report.routes import unclaimed, unequal

NEVER_MEASURED = "GPU hours, memory, energy and price"
ONCE = ("fetch", "prepare", "start", "preflight", "select", "evaluate-instruct")
PER_ROUTE = ("train", "extract", "sweep", "graft", "evaluate", "seeds")


def looks(verdict: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The field `look` of the verdict, and whether a record of earlier looks was kept; None in verdicts of format 1."""
    look = verdict.get("look")
    return None if look is None else dict(look) | {"recorded": run is not None}


def costs(run: Mapping[str, Any] | None, routes: Iterable[str]) -> dict[str, Any]:
    """`rows`, the seconds of each stage that was timed, their `total`, and the stages that were `missing`."""
    rows = list((run or {}).get("costs") or [])
    stages = [*ONCE, *(f"{stage}@{route}" for route in routes for stage in PER_ROUTE)]
    timed = {row["stage"] for row in rows}
    return {
        "rows": rows,
        "total": sum(row["seconds"] for row in rows),
        "missing": [stage for stage in stages if stage not in timed],
        "never": NEVER_MEASURED,
    }


def before(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What preflight.json says, with `kinds`: rows of (kind of module, cosine, sigma); None without the file."""
    if told is None:
        return None
    cosines, sigmas = told.get("modules") or {}, told["sigma"].get("modules") or {}
    kinds = [(kind, cosines.get(kind), sigmas.get(kind)) for kind in sorted(cosines.keys() | sigmas.keys())]
    return {"not_measured": None, "loss": None, "cosine": None} | dict(told) | {"kinds": kinds}


def by_seed(verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of training seeds: domain scores of arms, then differences; empty if each arm has one seed."""
    rows: list[dict[str, Any]] = []
    for name, arm in verdict["arms"].items():
        if runs := arm.get("seeds"):
            values = [(run["seed"], run["domain"]) for run in runs]
            rows.append({"name": name, "difference": False, "values": values})
    for claim in verdict["claims"]:
        if found := claim.get("by_seed"):
            name = f"{claim['arm']} minus {claim['against']}"
            rows.append({"name": name, "difference": True, "values": list(found.items())})
    width = max((len(row["values"]) for row in rows), default=0)
    for row in rows:
        row["values"] += [("–", None)] * (width - len(row["values"]))
    return rows


def versions(train: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, str]:
    """Program and version, as the files of training and delta have it; several versions are joined."""
    found: dict[str, set[str]] = {}
    for facts in train.values():
        for name, version in (facts.get("versions") or {}).items():
            found.setdefault(name, set()).add(str(version))
    for facts in delta.values():
        if facts.get("created_by"):
            name, _, version = str(facts["created_by"]).partition(" ")
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(found[name])) for name in sorted(found)}


def not_tested(
    verdict: Mapping[str, Any],
    routes: Sequence[str],
    train: Mapping[str, Any],
    data: Mapping[str, Any] | None,
    heads: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """What nobody may conclude from this page, as sentences; the most surprising first."""
    said = []
    if verdict["arms"]["instruct"]["guards"] is None:
        said.append("No guard task was measured, so nothing is claimed about forgetting.")
    if verdict["candidate"] and "champion" not in verdict["arms"]:
        said.append("No champion was scored on these items, so nothing is claimed about a version in service.")
    if not verdict["direct_control"]:
        said.append("The route direct was not run, so nothing is claimed about it.")
    said += _contamination(data)
    seeds = {facts["seed"] for facts in train.values() if facts.get("seed") is not None}
    if by_seed(verdict):
        said.append(
            "What would ship was trained once; further seeds count only for claims that compare ways of tuning. The "
            "intervals do not cover other data or another pair of models."
        )
    elif len(seeds) <= 1:
        said.append(
            "One training run per route was judged. The intervals cover new items of the same tasks, not another seed, "
            "other data or another pair of models."
        )
    if told := [f"{route} ({', '.join(lacks)})" for route, facts in train.items() if (lacks := _lacks(facts))]:
        said.append(
            f"Routes tuned by another trainer, and what its files do not tell: {'; '.join(told)}. That the routes had "
            "the same rows and settings is not shown."
        )
    if not any(
        task.get("counts", {}).get("cut") is not None for head in heads.values() for task in head["tasks"].values()
    ):
        said.append(
            "No answer was generated, or the scores do not count cut and empty ones, so nothing is claimed about those."
        )
    said += [
        "Nothing is claimed about abilities that no task on this page measures.",
        "Speed and memory in service, safety, and what people think of the answers were not measured.",
        f"{NEVER_MEASURED} of the trainings and evaluations were not measured.",
    ]
    if not any(claim.get("clusters") not in (None, claim["n"]) for claim in verdict["claims"]):
        said.append("Items of one task are assumed to be independent of each other.")
    return said + unclaimed(routes, verdict["candidate"]) + unequal(train)


def _lacks(facts: Mapping[str, Any]) -> list[str]:
    """What is not known of a training by another trainer."""
    found: list[str] = (facts.get("trainer") or {}).get("not_known", [])
    return found


def _contamination(data: Mapping[str, Any] | None) -> list[str]:
    if data is None:
        return ["No data report was found, so nothing is known about test items in the training data."]
    read = data.get("contaminated", {}).get("items")
    if read is None:
        return []
    if not read:
        return ["No test item was read, so nothing is known about test items in the training data."]
    if missing := data.get("not_compared"):
        return [f"The training data was not compared with the items of {', '.join(missing)}."]
    return ["A reworded test item in the training data would not have been found."]
