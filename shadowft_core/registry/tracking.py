"""The conversation with MLflow: bounded waits, one line per failure, records held against their digests."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowft_core.checkpoint import canonical_json, file_digest
from shadowft_core.errors import RegistryError, ShadowError
from shadowft_core.params import Registry
from shadowft_core.registry.evidence import Evidence, json_object
from shadowft_core.registry.rebuild import read_recipe

_REFERENCE = re.compile(
    r"models:/([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:@([A-Za-z][A-Za-z0-9_-]{0,99})|/([1-9][0-9]{0,8}))"
)
_PATIENCE = {  # the defaults block for four minutes when the server is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@contextmanager
def connected(registry: Registry) -> Iterator[Any]:
    """An MLflow client with bounded waits; whatever MLflow or its database raise becomes one line."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or registry.tracking_uri
    if uri.startswith("sqlite:///"):
        try:
            _database(uri).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RegistryError(
                f"registry at {uri}: {error.filename}: {error.strerror}; correct registry.tracking_uri"
            ) from None
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        if named is None:  # MLflow exports what it is told, and the next call would take it for the user's wish
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        yield mlflow.MlflowClient()
    except ShadowError:
        raise
    except (MlflowException, SQLAlchemyError) as error:
        text = _public(" ".join(str(error).split()))[:300]
        raise RegistryError(
            f"registry at {_public(uri)}: {text}; check that it runs and registry.tracking_uri is right"
        ) from None


def _public(text: str) -> str:
    """Text without the user and password of the URLs in it."""
    return re.sub(r"//[^@/\s]*@", "//***@", text)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _experiment(client: Any, registry: Registry) -> str:
    """The experiment named as the model. With a database file the artifacts live beside it."""
    found = client.get_experiment_by_name(registry.name)
    if found is not None:
        return str(found.experiment_id)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or registry.tracking_uri
    beside = (_database(uri).parent / "artifacts").absolute().as_uri() if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(registry.name, artifact_location=beside))


def log(client: Any, registry: Registry, recipe: dict[str, Any], tags: dict[str, str], evidence: Evidence) -> Any:
    """One finished run and one version, which carries the key from its first moment: half a record is no record."""
    import mlflow

    import shadowft_core

    experiment = _experiment(client, registry)
    for rest in client.search_runs([experiment], f"tags.`shadowft.key` = '{tags['shadowft.key']}'"):
        if rest.info.status == "RUNNING":  # of a killed process
            client.set_terminated(rest.info.run_id, "KILLED")
    with mlflow.start_run(
        experiment_id=experiment, run_name=f"{registry.name} {recipe['digest'][7:19]}", tags=tags
    ) as run:
        mlflow.log_params(flat(evidence.params.model_dump(mode="json")))
        mlflow.log_metrics(evidence.metrics())
        for path in evidence.files:
            mlflow.log_artifact(str(path))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "recipe.json")
            file.write_bytes(canonical_json(recipe))
            model = mlflow.pyfunc.log_model(
                name="recipe",
                python_model=str(Path(shadowft_core.__file__).with_name("recipe_model.py")),
                artifacts={"recipe": str(file)},
                pip_requirements=["shadowft"],
                metadata={"shadowft.recipe": tags["shadowft.recipe"]},
            )
    try:
        client.create_registered_model(registry.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(registry.name, model.model_uri, run_id=run.info.run_id, tags=tags)


def flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{name}.")
        else:
            found[above + name] = _public(str(value))[:6000]
    return found


def version_of(client: Any, name: str, key: str) -> Any | None:
    """The first version with this key, so that two who register the same run at once agree."""
    found = client.search_model_versions(f"name = '{name}' and tags.`shadowft.key` = '{key}'")
    return min(found, key=lambda version: int(version.version), default=None)


def alias_of(client: Any, name: str, alias: str) -> int | None:
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else int(number)


def parsed(reference: str) -> tuple[str, str]:
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise RegistryError(f"{reference!r}: models:/NAME@ALIAS or models:/NAME/VERSION is wanted")
    return match[1], match[2] or match[3]


def find(client: Any, name: str, version: str) -> Any:
    """A version by number or alias."""
    from mlflow.exceptions import MlflowException

    parsed(f"models:/{name}/{version}" if version.isdigit() else f"models:/{name}@{version}")
    try:
        if version.isdigit():
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RegistryError(
                f"no version {version!r} of {name!r} in the registry; `shadowft register` makes one"
            ) from None
        raise


def recipe_of(client: Any, version: Any) -> dict[str, Any]:
    """The recipe of a version, held against the digest that the version carries."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{version.name}/{version.version}/artifacts/recipe.json"
        file = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        _require(version, file, version.tags.get("shadowft.recipe"))
        return read_recipe(file)


def record_of(client: Any, version: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and verdict of a version; the recipe holds the verdict's digest, so neither can be exchanged alone."""
    import mlflow

    recipe = recipe_of(client, version)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(
            mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="verdict.json", dst_path=folder)
        )
        _require(version, file, recipe["verdict"]["digest"])
        return recipe, json_object(file)


def _require(version: Any, file: Path, expected: str | None) -> None:
    if (found := file_digest(file)) != expected:
        raise RegistryError(
            f"{version.name} version {version.version}: its {file.name} is {found}, registered was {expected}; the "
            "record was changed, register the run again"
        )
