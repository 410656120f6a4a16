"""From a registered recipe to the same model, anywhere."""

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import shadowft_core.store as stores
from shadowft_core.checkpoint import canonical_json, file_digest, new_folder, open_checkpoint
from shadowft_core.errors import CheckpointError, GraftError, RegistryError, StoreError, StoreUnreachable
from shadowft_core.params import Store, located

LARGEST_RECIPE = 1 << 20  # bytes


def ingredients(
    recipe: dict[str, Any], parts: Path, instruct: Path | None = None, store: Store | None = None
) -> tuple[Path, list[tuple[Path, float]]]:
    """The folder of the Instruct and (delta folder, scale) of every delta, fetched into the folder `parts`.

    `store` takes the place of the one that the recipe names, or the environment in its stead.
    Raises GraftError when the Instruct is another one, PairError when its reference cannot be resolved, store errors.
    """
    from shadowft_core.pair import resolve

    if instruct is None:
        instruct, _ = resolve(recipe["instruct"]["ref"])
    if (found := open_checkpoint(instruct).digest()) != recipe["instruct"]["digest"]:
        raise GraftError(
            f"{instruct}: its weights are {found}, the recipe wants {recipe['instruct']['digest']}; pass the right one "
            "with --instruct"
        )
    store = store or located(Store(**recipe["store"]))
    deltas = []
    for number, delta in enumerate(recipe["deltas"]):
        try:
            stores.fetch_delta(delta["digest"], store, parts / str(number))
        except StoreUnreachable:
            raise
        except StoreError as error:
            raise type(error)(f"{error}. Elsewhere? Name the store with --store or SHADOWFT_STORE_URI") from None
        deltas.append((parts / str(number), float(delta["scale"])))
    return instruct, deltas


def rebuild(recipe: dict[str, Any], out: Path, instruct: Path | None = None, store: Store | None = None) -> None:
    """Make the model folder of a registered recipe; see `materialize`."""
    from shadowft_core.graft import graft, options_of

    with new_folder(out) as folder:
        parts = folder / ".parts"
        instruct, deltas = ingredients(recipe, parts, instruct, store)
        made = graft(instruct, deltas, parts / "model", **options_of(recipe))
        for what, expected, found in [
            ("the weights", recipe["digest"], made["digest"]),
            *(
                (f"file {file}", recipe["files"].get(file), made["files"].get(file))
                for file in _all_files(recipe, made)
            ),
        ]:
            if found != expected:
                raise GraftError(f"{out}: {what} came out as {found}, the recipe says {expected}; nothing was kept")
        for entry in (parts / "model").iterdir():
            entry.rename(folder / entry.name)
        shutil.rmtree(parts)


def cached(recipe: dict[str, Any], cache: Path) -> Path:
    """The rebuilt model of a recipe in a folder of its own under `cache`; rebuilt when absent or no longer whole.

    Several processes may ask at once: one rebuilds, the others wait. Raises as `materialize` does.
    """
    folder = cache / str(recipe["digest"]).removeprefix("sha256:")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(recipe, folder):
            rebuild(recipe, folder)
    return folder


def _whole(recipe: dict[str, Any], folder: Path) -> bool:
    """Whether a folder still holds what the recipe makes."""
    try:
        return open_checkpoint(folder).digest() == recipe["digest"] and all(
            file_digest(folder / name) == digest for name, digest in recipe["files"].items()
        )
    except (CheckpointError, OSError):
        return False


def read_recipe(path: Path) -> dict[str, Any]:
    """A registered recipe from its file. Raises RegistryError when it is not one."""
    return parse_recipe(path.read_bytes() if path.stat().st_size <= LARGEST_RECIPE else b"", str(path))


def parse_recipe(raw: bytes, where: str) -> dict[str, Any]:
    """A registered recipe from its bytes; `where` is what an error names. Raises RegistryError when it is not one."""
    try:
        recipe = json.loads(raw)
        complete = recipe["format"] == 1 and canonical_json(recipe) == raw
        _ = recipe["instruct"]["ref"], recipe["digest"], recipe["files"], recipe["verdict"]["digest"]
        _ = (
            recipe["base"]["digest"],
            recipe["lineage"]["lock"],
            recipe["lineage"]["data"],
            recipe["verdict"]["decision"],
        )
        complete = complete and bool([(delta["digest"], float(delta["scale"])) for delta in recipe["deltas"]])
        Store(**recipe["store"])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise RegistryError(
            f"{where}: not a recipe of format 1 as `shadowft register` writes it; register the run again"
        )
    return dict(recipe)


def _all_files(*recipes: dict[str, Any]) -> list[str]:
    return sorted({file for recipe in recipes for file in recipe["files"]})
