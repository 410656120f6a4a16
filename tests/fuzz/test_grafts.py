"""Damaged recipes of registered versions and waiting registrations."""

import json
from pathlib import Path

from shadowft_core.files import canonical_json
from shadowft_core.grafting import graft, options_of
from shadowft_core.grafting.options import deltas_of
from shadowft_core.registry.rebuild import read_recipe, store_for
from shadowft_core.registry.registration import Registration, keep, load, tags_of, waiting, waiting_in, waits
from tests.fuzz.damage import json_damage, whole_damage
from tests.fuzz.harness import Target, fuzzed
from tests.test_delta_format import make, models

DIGEST = "sha256:" + "a" * 64


def make_graft(folder: Path) -> None:
    _, tuned = models(folder.parent / "made")
    delta = make(folder.parent / "delta", "float32")
    graft(tuned, [(delta, 0.5)], folder / "grafted")


def recipe_in(folder: Path) -> None:
    make_graft(folder.parent / "graft")
    recipe = json.loads((folder.parent / "graft/grafted/recipe.json").read_bytes())
    recipe |= {"store": {"uri": "var/store"}, "base": {"ref": "b", "digest": DIGEST}, "arm": "shadow_scaled"}
    recipe |= {"lineage": {"lock": DIGEST, "data": DIGEST}, "verdict": {"digest": DIGEST, "decision": "promote"}}
    recipe["instruct"] |= {"ref": "hf:a/b@c"}
    (folder / "recipe.json").write_bytes(canonical_json(recipe))


def read_registered(folder: Path) -> None:
    recipe = read_recipe(folder / "recipe.json")
    store_for(recipe)
    options_of(recipe)
    deltas_of(recipe, folder)
    tags_of(recipe)


def make_waiting(folder: Path) -> None:
    keep(Registration("m", DIGEST, "hold", {"format": 1}, {"a": "b"}, {"c": "d"}, {"e": 1.0}, [], {"f": b"x"}), folder)


def read_waiting(folder: Path) -> None:
    for place in waiting_in(folder):
        load(place)
    waiting(folder)
    waits("m", folder)


test_hostile_grafts = fuzzed(
    Target(
        "recipe",
        recipe_in,
        read_registered,
        {"recipe.json": json_damage},
    ),
    Target(
        "registration",
        make_waiting,
        read_waiting,
        {"*/registration.json": json_damage, "*/files/f": whole_damage},
    ),
)
