"""Rebuilds the model of a registered recipe, on any machine."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import shadowft_core.store as stores
from shadowft_core.errors import CheckpointError, GraftError, RegistryError, StoreError, StoreUnreachableError
from shadowft_core.files import canonical_json, file_digest, new_folder, read_regular
from shadowft_core.files.record import checked
from shadowft_core.grafting.receipt import RECEIPT, RECIPE
from shadowft_core.params import Store, located
from shadowft_core.registry.forms import RegisteredRecipe
from shadowft_core.weights import INDEX, open_checkpoint

LARGEST_RECIPE = 1 << 20  # bytes


def store_for(recipe: dict[str, Any], configured: Store | None = None) -> Store:
    """The store that a recipe's deltas are read from. A recipe may not name a new endpoint.

    If SHADOWFT_STORE_URI is set, it names the store. Otherwise the recipe's store is used if it is a folder (which
    needs no credentials, and every byte read is verified) or is on an endpoint that this machine names:
    SHADOWFT_STORE_ENDPOINT or the endpoint of `configured`, the `store` of params.yaml.

    Raises StoreError for any other store, before any request.
    """
    try:
        named = Store(**recipe["store"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the recipe names no usable store ({' '.join(str(error).split()):.200}); register the run again"
        ) from None
    if os.environ.get("SHADOWFT_STORE_URI"):
        return located(configured or named.model_copy(update={"endpoint": None}))
    if not named.uri.startswith("s3://"):
        return named
    if endpoint := os.environ.get("SHADOWFT_STORE_ENDPOINT"):
        return named.model_copy(update={"endpoint": endpoint})
    here = configured if configured and configured.uri.startswith("s3://") else None
    if here and _server(here) == _server(named):
        owner = here.bucket_owner or named.bucket_owner
        return named.model_copy(update={"endpoint": here.endpoint, "bucket_owner": owner})
    raise StoreError(
        f"the recipe's deltas are in {named.uri} at {_server(named)}, the configuration has "
        f"{f'{here.uri} at {_server(here)}' if here else 'no S3 store'}: credentials are not sent to a server that "
        f"only a recipe names. If you trust it, set SHADOWFT_STORE_URI={named.uri}"
        + (f" and SHADOWFT_STORE_ENDPOINT={_server(named)}" if named.endpoint else "")
    )


def _server(store: Store) -> str:
    """Scheme, host and port of an S3 endpoint, without any password in it."""
    if not store.endpoint:
        return "AWS"
    parts = urlsplit(store.endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2].lower()}{parts.path.rstrip('/')}"


def ingredients(
    recipe: dict[str, Any], parts: Path, instruct: Path | None = None, store: Store | None = None
) -> tuple[Path, list[tuple[Path, float]]]:
    """The folder of the Instruct and (delta folder, scale) of every delta, fetched into the folder `parts`.

    `store` is where the deltas are; by default the store that `store_for` returns.
    Raises GraftError when the Instruct is another one, InputError when its reference cannot be resolved,
    CheckpointError when it cannot be read, store errors.
    """
    from shadowft_core.pair import resolve

    store = store or store_for(recipe)
    if instruct is None:
        instruct, _ = resolve(recipe["instruct"]["ref"])
    if (found := open_checkpoint(instruct).digest()) != recipe["instruct"]["digest"]:
        raise GraftError(
            f"{instruct}: its weights have digest {found}, the recipe expects {recipe['instruct']['digest']}; pass the "
            "right one with --instruct"
        )
    deltas = []
    for number, delta in enumerate(recipe["deltas"]):
        try:
            stores.fetch_delta(delta["digest"], store, parts / str(number))
        except StoreUnreachableError:
            raise
        except StoreError as error:
            raise type(error)(f"{error}. If the deltas have moved, pass --store or set SHADOWFT_STORE_URI") from None
        deltas.append((parts / str(number), float(delta["scale"])))
    return instruct, deltas


def rebuild(recipe: dict[str, Any], out: Path, instruct: Path | None = None, store: Store | None = None) -> None:
    """Write the model folder of a registered recipe; see `promotion.materialize`."""
    from shadowft_core.grafting import graft, options_of

    with new_folder(out) as folder:
        parts = folder / ".parts"
        instruct, deltas = ingredients(recipe, parts, instruct, store)
        made = graft(instruct, deltas, parts / "model", options_of(recipe))
        for what, expected, found in [
            ("the weights", recipe["digest"], made["digest"]),
            *(
                (f"file {file}", recipe["files"].get(file), made["files"].get(file))
                for file in _all_files(recipe, made)
            ),
        ]:
            if found != expected:
                raise GraftError(
                    f"{out}: expected {what} with digest {expected}, the rebuild has {found}; nothing was written"
                )
        for entry in (parts / "model").iterdir():
            entry.rename(folder / entry.name)
        shutil.rmtree(parts)


def cached(recipe: dict[str, Any], cache: Path, store: Store | None = None) -> Path:
    """The folder under `cache` with the model of a recipe; rebuilt when absent or damaged.

    If several processes call this at once, one rebuilds and the others wait. Raises what `rebuild` raises.
    """
    folder = cache / str(recipe["digest"]).removeprefix("sha256:")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(recipe, folder):
            rebuild(recipe, folder, store=store)
    return folder


def _whole(recipe: dict[str, Any], folder: Path) -> bool:
    """Whether a folder has the model of the recipe, and no other file that a library would read."""
    try:
        model = open_checkpoint(folder)
        known = {*model.shards, INDEX, RECIPE, RECEIPT, *recipe["files"]}
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        return (
            found <= known
            and model.digest() == recipe["digest"]
            and all(file_digest(folder / name) == digest for name, digest in recipe["files"].items())
        )
    except (CheckpointError, OSError):
        return False


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a registered recipe. Raises RegistryError when the file is not one."""
    return parse_recipe(read_regular(path, LARGEST_RECIPE, RegistryError), str(path))


def parse_recipe(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a registered recipe; errors name `where`. Raises RegistryError when the bytes are not one."""
    where, remedy = f"{where}: not a recipe of format 1 as `shadowft register` writes it", "register the run again"
    if len(raw) > LARGEST_RECIPE:
        raise RegistryError(f"{where}: {len(raw)} bytes, the limit is {LARGEST_RECIPE}; {remedy}")
    recipe: dict[str, Any] = checked(raw, RegisteredRecipe, where, remedy, error=RegistryError)
    if canonical_json(recipe) != raw:
        raise RegistryError(f"{where}: not canonical JSON; {remedy}")
    try:
        Store(**recipe["store"])
    except (TypeError, ValueError) as error:
        raise RegistryError(f"{where}: store: {' '.join(str(error).split()):.200}; {remedy}") from None
    return recipe


def _all_files(*recipes: dict[str, Any]) -> list[str]:
    return sorted({file for recipe in recipes for file in recipe["files"]})
