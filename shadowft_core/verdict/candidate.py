"""Which arm is the candidate: the one that candidate.json names, or the one that is the model of a recipe."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shadowft_core.errors import EvaluationError
from shadowft_core.files import Fields, read_record
from shadowft_core.limits import LABEL_CHARACTERS, RECORD_BYTES
from shadowft_core.selection import read_candidate as selection_of
from shadowft_core.verdict.scores import CHAMPIONS, Arm


@dataclass(frozen=True)
class Candidate:
    """The arm to judge and its model digest; both None, with a reason, if no arm beat the Instruct on dev items."""

    arm: str | None
    digest: str | None
    reason: str = ""


def read_candidate(selection: Path | str | None, recipes: Iterable[Path], arms: Mapping[str, Arm]) -> Candidate:
    """The candidate that `selection` (candidate.json, or an arm) names, else the arm that one of `recipes` makes.

    With both, a recipe must make the model of that arm. Raises EvaluationError if a file is damaged or
    missing, no arm is that model, or the arm was scored at another scale than that of
    candidate.json.
    """
    made = {recipe: _digest(recipe) for recipe in recipes}
    if selection is None:
        return _of_recipe(made, arms)
    name, scale = selection, None
    if isinstance(selection, Path):
        found = selection_of(selection)
        if found.arm is None:
            return Candidate(None, None, found.reason)
        name, scale = found.arm, found.scale
    name = str(name)
    if name not in arms or name in ("instruct", *CHAMPIONS):
        where = f"{selection}: arm is" if isinstance(selection, Path) else "the candidate is"
        raise EvaluationError(
            f"{where} {name!r}, but the arms that were scored are {', '.join(arms)}; name another, run `shadowft "
            "select` again, or evaluate that route"
        )
    digest = arms[name].model_digest
    if scale not in (None, arms[name].scale):
        raise EvaluationError(
            f"{selection}: {name} was chosen at scale {scale:g}, but its scores are of scale {arms[name].scale}; graft "
            "and evaluate that route again"
        )
    if made and digest not in made.values():
        first, model = next(iter(made.items()))
        raise EvaluationError(
            f"{first}: model is {model}, but the scores of {name} are of {digest}; evaluate the grafted folder again"
        )
    return Candidate(name, digest)


def _of_recipe(made: Mapping[Path, str], arms: Mapping[str, Arm]) -> Candidate:
    """The last arm, in the order of the report, that is the model of a recipe: ROUTE_scaled before its equal at 1."""
    ours = {name: arm.model_digest for name, arm in arms.items() if name.endswith("_scaled")}
    for digest in made.values():
        for name in reversed(list(arms)):
            if arms[name].model_digest == digest:
                return Candidate(name, digest)
    if not made:
        raise EvaluationError("no candidate is named; pass candidate.json or the recipe.json of an arm")
    scored = ", ".join(f"{name} {digest}" for name, digest in ours.items())
    recipe, digest = next(iter(made.items()))
    raise EvaluationError(
        f"{recipe}: model is {digest}, but the scores are of other models ({scored:.700}); evaluate the grafted folder "
        "again"
    )


class _Recipe(Fields):
    digest: Annotated[str, Field(min_length=1, max_length=LABEL_CHARACTERS)]


def _digest(path: Path) -> str:
    """The digest of the model that a recipe makes. Raises EvaluationError if it names none."""
    return read_record(path, _Recipe, "run graft again", error=EvaluationError, largest=RECORD_BYTES).digest
