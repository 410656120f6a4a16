"""Applies the deltas of a recipe to another Instruct of the same Base. The new recipe has no verdict yet."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shadowft_core.delta import open_delta
from shadowft_core.errors import GraftError
from shadowft_core.files import bytes_digest, canonical_json, read_json_object
from shadowft_core.weights import open_checkpoint


def regraft(
    recipe: Path,
    instruct: Path,
    deltas: Sequence[Path],
    out: Path,
    waivers: Collection[str] = (),
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `out` as `graft` does, from the deltas, scales and options of a recipe; return the new recipe.

    Deltas are found by digest among the given folders, else in the store of a registered recipe (`store_for`). The
    waivers and `ignore` of the old recipe are not copied, because they were given for another Instruct. The new recipe
    has `needs_verdict` and `regrafted_from`, the SHA-256 of the old recipe's canonical JSON.

    Raises GraftError when the recipe is damaged, when `instruct` is already its Instruct, or when a delta is missing or
    not in the recipe; and what `graft` and the store raise. Nothing is written then.
    """
    from shadowft_core.grafting import deltas_of, graft, options_of
    from shadowft_core.registry.rebuild import store_for

    old = read_json_object(recipe)
    try:
        digest, known = str(old["instruct"]["digest"]), old["format"] == 1
    except (KeyError, TypeError, ValueError) as error:
        raise GraftError(f"{recipe}: not a recipe ({error!r:.200}); pass the recipe.json of a grafted folder") from None
    if not known:
        raise GraftError(f"{recipe}: recipe format {old['format']!r}, expected 1; graft again")
    parts = deltas_of(old, recipe)
    options = replace(options_of(old), waivers=waivers, ignore=ignore)
    if open_checkpoint(instruct).digest() == digest:
        raise GraftError(f"{instruct}: this is the Instruct of the recipe, {digest}; pass another one")
    found = {open_delta(folder).digest: folder for folder in deltas}
    if strange := sorted(set(found) - {part for part, _ in parts}):
        raise GraftError(f"{found[strange[0]]}: delta {strange[0]} is not in {recipe}; pass the deltas it names")
    missing = [part for part, _ in parts if part not in found]
    if missing and not isinstance(old.get("store"), dict):
        raise GraftError(f"{recipe}: delta {missing[0]} is not among the given folders; pass it with --delta")
    notes = {"needs_verdict": True, "regrafted_from": bytes_digest(canonical_json(old))}
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.deltas.") as fetched:
        for number, part in enumerate(missing):
            from shadowft_core.store import fetch_delta

            found[part] = Path(fetched, str(number))
            fetch_delta(part, store_for(old), found[part])
        return graft(instruct, [(found[part], scale) for part, scale in parts], out, options, notes)
