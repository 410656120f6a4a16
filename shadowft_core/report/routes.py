"""What the page says about routes: their arms, and the settings in which a further route differs from the others."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

ARMS = {
    "instruct": "the untouched Instruct",
    "champion": "the version in service",
    "best_champion": "the best earlier champion on these items",
    "direct": "Instruct tuned directly, full delta",
    "direct_scaled": "Instruct tuned directly, scale chosen on dev items",
    "shadow": "Instruct + delta of the tuned Base, scale 1",
    "shadow_scaled": "Instruct + delta of the tuned Base, scale chosen on dev items",
}
JUDGED = ("shadow", "direct")
DIFFERENT = 12  # settings of a further route that the page lists


def notes(
    arms: Iterable[str], candidate: str | None, train: Mapping[str, Any], pair: Mapping[str, Any] | None
) -> dict[str, str]:
    """A note for each arm."""
    found = {}
    for name in arms:
        route = name.removesuffix("_scaled")
        tuned = _tuned(train.get(route), pair)
        scale = "scale 1" if name == route else "scale chosen on dev items"
        note = ARMS.get(name, f"further route: Instruct + delta of {tuned}, {scale}")
        if rows := _replayed(train.get(route)):
            note += f"; trained on {rows:,} replay rows, too"
        found[name] = f"the candidate: {note}" if name == candidate else note
    return found


def changes(train: Mapping[str, Any]) -> dict[str, list[str]]:
    """The settings, and replay rows, in which each further route differs from shadow, as `name value (shadow value)`.

    Nothing for a route whose train.json has no settings (that of another trainer).
    """
    settings = {
        route: _flat(facts["settings"]) | {"replay rows": _replayed(facts)}
        for route, facts in train.items()
        if facts.get("settings")
    }
    if (shadow := settings.get("shadow")) is None:
        return {}
    found = {}
    for route in settings.keys() - set(JUDGED):
        own = settings[route]
        lines = [
            f"{name} {_text(own.get(name))} (shadow {_text(shadow.get(name))})"
            for name in sorted(own.keys() | shadow.keys())
            if own.get(name) != shadow.get(name)
        ]
        found[route] = lines[:DIFFERENT] + [f"and {len(lines) - DIFFERENT} more"] * (len(lines) > DIFFERENT)
    return found


def unclaimed(routes: Iterable[str], candidate: str | None) -> list[str]:
    """A sentence if there are further routes that are compared with the candidate, so other than its own."""
    further = [route for route in routes if route not in JUDGED and f"{route}_scaled" != candidate]
    if candidate is None or not further:
        return []
    who = f"route {further[0]} is" if len(further) == 1 else f"routes {', '.join(further)} are"
    return [
        f"The further {who} compared with the candidate, but unless verdict.require names such a claim, it does not "
        "change the decision."
    ]


def unequal(train: Mapping[str, Any]) -> list[str]:
    """A sentence if some routes trained on replay rows and others did not."""
    used = {route: facts["rows"]["replay"] for route, facts in train.items() if "replay" in facts.get("rows", {})}
    if len(used) in (0, len(train)):
        return []
    who = f"route {next(iter(used))} was" if len(used) == 1 else f"routes {', '.join(used)} were"
    counts = ", ".join(f"{count:,}" for count in sorted({rows["rows"] for rows in used.values()}))
    return [
        f"Only the {who} trained on replay rows ({counts}), so these rows may cause a difference between the routes."
    ]


def _replayed(train: Mapping[str, Any] | None) -> int:
    """How many replay rows a route trained on."""
    rows: int = (train or {}).get("rows", {}).get("replay", {}).get("rows", 0)
    return rows


def _tuned(train: Mapping[str, Any] | None, pair: Mapping[str, Any] | None) -> str:
    for side, text in (("base", "the tuned Base"), ("instruct", "the tuned Instruct")):
        if train and pair and train.get("model_digest") == pair[side]["digest"]:
            return text
    return "a tuned model"


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {above + name: value}
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
