"""The section `routes`: the ways to tune, and the settings that a further route changes."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from shadowft_core.errors import ParamsError
from shadowft_core.params.problems import problems
from shadowft_core.params.section import Section
from shadowft_core.params.training import Train

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


def _name(name: str) -> str:
    """A name of files, arms and stages; ROUTE_scaled, instruct, champion and best_champion are names of arms."""
    if not _NAME.fullmatch(name) or name.endswith("_scaled") or name in ("instruct", "champion", "best_champion"):
        raise ValueError(
            f"{name[:80]!r} cannot name a route: use a-z, 0-9 and _, at most 40, the first a letter; not `instruct`, "
            "`champion` or `best_champion`, and without _scaled at the end"
        )
    return name


RouteName = Annotated[str, AfterValidator(_name)]


class Route(Section):
    """One way to tune: the Base (shadow), the Instruct itself (direct), or a rival of both with its own settings."""

    model: Literal["base", "instruct"] = Field(description="the model that is tuned")
    graft: Literal["", "--onto-base"] = Field(
        "", description="waiver of the graft stage: --onto-base where the Instruct is tuned"
    )
    replay: bool = Field(True, description="also train on the rows of prepare.replay, if it is set")
    train: dict[str, JsonValue] = Field(
        {}, description="settings that replace those of the section train; not in shadow and direct"
    )


ROUTES: dict[str, Route] = {
    "shadow": Route(model="base"),
    "direct": Route(model="instruct", graft="--onto-base"),
}


def require_known(routes: Mapping[str, Route]) -> None:
    """Raises ValueError if shadow or direct is another route than its name says, or a waiver does not suit its model.

    `replay` is free.
    """
    found = {name: route.model_copy(update={"replay": True}) for name, route in routes.items()}
    for name in filter(found.__contains__, ROUTES):
        if changed := list(found[name].train):
            raise ValueError(
                f"routes.{name}.train changes {', '.join(changed)}, it must be empty: shadow and direct share all "
                "settings; write it in a further route"
            )
    if found.get("shadow") != ROUTES["shadow"]:
        raise ValueError("routes.shadow must be {model: base, graft: ''}: the shadow is the tuned Base")
    if found.get("direct", ROUTES["direct"]) != ROUTES["direct"]:
        raise ValueError("routes.direct must be {model: instruct, graft: --onto-base}: it is the control")
    for name, route in found.items():
        if route.graft != (waiver := "--onto-base" if route.model == "instruct" else ""):
            raise ValueError(
                f"routes.{name}.graft is {route.graft!r}, a route that tunes the {route.model} needs {waiver!r}"
            )


def changed_train(train: Train, name: str, route: Route) -> Train:
    """The settings of a route: `train` with the values that the route changes, checked like the section itself.

    Raises ParamsError with the dotted name of every bad field, or if the route has another number of seeds.
    """
    if not route.train:
        return train
    other = {"seeds"} if "seed" in route.train and "seeds" not in route.train else {"seed"}
    text = json.dumps(_merged(train.model_dump(mode="json", exclude=other), route.train))
    try:
        changed = Train.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ParamsError(problems(error, Train, f"routes.{name}.train.")) from None
    if len(changed.seeds) != len(train.seeds):
        raise ParamsError(
            f"routes.{name}.train: seeds is {list(changed.seeds)}, but train.seeds is {list(train.seeds)}; routes are "
            "compared seed by seed, so name as many"
        )
    return changed


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged field by field; any other value of `above`, also a list, replaces that of `below`."""
    nested = {
        name: _merged(below[name], value)
        for name, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(name), dict)
    }
    return {**below, **above, **nested}
