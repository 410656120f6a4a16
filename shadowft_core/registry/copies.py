"""MLflow's copies of a recipe and its verdict, checked against their digests."""

import tempfile
from pathlib import Path
from typing import Any

from shadowft_core.errors import RegistryError
from shadowft_core.files import bytes_digest, read_regular
from shadowft_core.limits import RECORD_BYTES
from shadowft_core.registry.connection import one_line
from shadowft_core.registry.rebuild import parse_recipe
from shadowft_core.registry.registration import tags_of
from shadowft_core.registry.tracking import create, describe

_REMEDY = "the registry was edited; delete this version there and register its run again"


def recipe_of(version: Any, digest: str) -> dict[str, Any]:
    """MLflow's copy of a version's recipe. Raises RegistryError unless it has this digest."""
    return _recipe(f"{version.name} version {version.version}", f"models:/{version.name}/{version.version}", digest)


def require_copy(version: Any, name: str, digest: str) -> None:
    """Raise RegistryError unless the file `name` of the version's run has this digest."""
    where = f"{version.name} version {version.version}"
    _copy(where, name, digest, f"runs:/{version.run_id}", run_id=str(version.run_id))


def require_tags(version: Any, recipe: dict[str, Any]) -> None:
    """Raise RegistryError unless the version has the tags that follow from its recipe."""
    _require_tags(f"{version.name} version {version.version}: its tag", version.tags, recipe)


def require_run_tags(client: Any, version: Any, recipe: dict[str, Any]) -> None:
    """Like `require_tags`, for the version's run."""
    tags = client.get_run(version.run_id).data.tags
    _require_tags(f"{version.name} version {version.version}: its run's tag", tags, recipe)


def _require_tags(which: str, tags: dict[str, str], recipe: dict[str, Any]) -> None:
    for name, expected in tags_of(recipe).items():
        if (found := (tags or {}).get(name)) != expected:
            raise RegistryError(f"{which} {name} is {str(found)[:100]}, its recipe requires {expected}; {_REMEDY}")


def version_again(client: Any, name: str, source: str, run_id: str, recipe: str) -> Any:
    """Replace a deleted version by a new one of the same recipe and run, with the same files and tags.

    `recipe` is the digest of the recipe. Raises RegistryError when the run or the recipe was removed or differs.
    """
    from mlflow.exceptions import MlflowException

    other = "roll back to another version with `shadowft rollback --to VERSION`"
    try:
        tags = {key: value for key, value in client.get_run(run_id).data.tags.items() if key.startswith("shadowft.")}
        if (found := tags.get("shadowft.recipe")) != recipe:
            raise RegistryError(f"{name}: run {run_id} has recipe {found}, the ledger has {recipe}; {other}")
        model = str(client.get_logged_model(source.removeprefix("models:/")).artifact_location)
        tags |= tags_of(_recipe(f"{name}: run {run_id}", model, recipe))
        version = create(client, name, source, run_id, tags)
        describe(client, version)
        return version
    except MlflowException as error:
        raise RegistryError(
            f"{name}: run {run_id} or its recipe was removed from the registry ({one_line(error)}); {other}"
        ) from None


def _recipe(where: str, model: str, digest: str) -> dict[str, Any]:
    return parse_recipe(
        _copy(where, "recipe.json", digest, f"{model}/artifacts", artifact_uri=f"{model}/artifacts"),
        f"{where}: recipe.json",
    )


def _copy(where: str, name: str, digest: str, folder: str, **place: str) -> bytes:
    """The bytes of a file below the URI `folder`, which `place` names, too. Its size is asked for first."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    with tempfile.TemporaryDirectory() as here:
        try:
            listed = mlflow.artifacts.list_artifacts(**place)
            sizes = [one.file_size for one in listed if str(one.path).rpartition("/")[2] == name and not one.is_dir]
            if any(not isinstance(size, int) or size > RECORD_BYTES for size in sizes):
                size = f"{sizes[0]!r:.40} bytes, the limit is {RECORD_BYTES}"
                raise RegistryError(f"{where}: its {name} has {size}; {_REMEDY}")
            got = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{folder}/{name}", dst_path=here))
            raw = read_regular(got, RECORD_BYTES, RegistryError)
        except (OSError, MlflowException, RequestException) as error:
            raise RegistryError(
                f"{where}: its {name} cannot be read ({one_line(error)}); check that the registry runs. If it was "
                "removed there, delete this version and register its run again"
            ) from None
    if (found := bytes_digest(raw)) != digest:
        raise RegistryError(f"{where}: the digest of its {name} is {found}, expected {digest}; {_REMEDY}")
    return raw
