"""The conversation with MLflow: bounded waits, one line per failure, records held against their digests."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowft_core.checkpoint import canonical_json, file_digest, make_private_file
from shadowft_core.errors import RegistryError, ShadowError, without_passwords
from shadowft_core.params import Registry
from shadowft_core.registry.evidence import json_object
from shadowft_core.registry.rebuild import read_recipe
from shadowft_core.registry.registration import Registration

_REFERENCE = re.compile(
    r"models:/([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:@([A-Za-z][A-Za-z0-9_-]{0,99})|/([1-9][0-9]{0,8}))"
)
_SETTINGS = {  # by default a call blocks for four minutes when the server is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for what a verb answers
}


@contextmanager
def connected(registry: Registry) -> Iterator[Any]:
    """An MLflow client with bounded waits; whatever MLflow or its database raise becomes one line."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or registry.tracking_uri
    if uri.startswith("sqlite:///"):
        try:
            make_private_file(_database(uri))
        except OSError as error:
            raise RegistryError(
                f"registry at {uri}: {error.filename}: {error.strerror}; correct registry.tracking_uri"
            ) from None
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        if named is None:  # MLflow exports what it is told, and the next call would take it for the user's wish
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        yield mlflow.MlflowClient()
    except ShadowError:
        raise
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        raise RegistryError(
            f"registry at {uri}: {_one_line(error)}; check that it runs and that registry.tracking_uri is right"
        ) from None
    except ModuleNotFoundError as error:  # SQLAlchemy imports a database's driver when it is first asked for
        raise RegistryError(
            f"registry at {uri}: its driver {error.name} is not installed; for PostgreSQL install shadowft[postgres]"
        ) from None


def _one_line(error: Exception) -> str:
    return without_passwords(" ".join(str(error).split()))[:300]


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _experiment(client: Any, registry: Registry, name: str) -> str:
    """The experiment named as the model. With a database file the artifacts live beside it."""
    from mlflow.exceptions import MlflowException

    uri = os.environ.get("MLFLOW_TRACKING_URI") or registry.tracking_uri
    beside = (_database(uri).parent / "artifacts").absolute().as_uri() if uri.startswith("sqlite:///") else None
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=beside))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def log(client: Any, registry: Registry, registration: Registration) -> None:
    """One finished run and one version, which carries the key from its first moment: half a record is no record."""
    import mlflow

    import shadowft_core

    recipe, tags = registration.recipe, registration.tags
    experiment = _experiment(client, registry, registration.name)
    for rest in client.search_runs([experiment], f"tags.`shadowft.key` = '{registration.key}'"):
        if rest.info.status == "RUNNING":  # of a killed process
            client.set_terminated(rest.info.run_id, "KILLED")
    run_name = f"{registration.name} {recipe['digest'][7:19]}"
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(experiment_id=experiment, run_name=run_name, tags=tags) as run,
    ):
        mlflow.log_params(registration.params)
        _log_datasets(registration.datasets)
        attached = Path(folder, "files")
        attached.mkdir()
        for name, data in registration.files.items():
            (attached / name).write_bytes(data)
        mlflow.log_artifacts(str(attached))
        file = Path(folder, "recipe.json")
        file.write_bytes(canonical_json(recipe))
        model = mlflow.pyfunc.log_model(
            name="recipe",
            python_model=str(Path(shadowft_core.__file__).with_name("recipe_model.py")),
            artifacts={"recipe": str(file)},
            pip_requirements=["shadowft"],
            metadata={"shadowft.recipe": tags["shadowft.recipe"]},
        )
        # After the model: what stands before it, MLflow asks back and copies to it, one request for every metric.
        mlflow.log_metrics(registration.metrics, model_id=model.model_id)
    try:
        client.create_registered_model(registration.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    _create(client, registration.name, model.model_uri, run.info.run_id, tags)


def _create(client: Any, name: str, source: str, run_id: str, tags: dict[str, str]) -> Any:
    """A version of a logged model. A server wants its id beside the source `models:/ID`, a database does not care."""
    return client.create_model_version(
        name, source, run_id=run_id, tags=tags, model_id=source.removeprefix("models:/"), await_creation_for=0
    )


def _log_datasets(datasets: list[dict[str, str]]) -> None:
    """The splits as inputs of the run. MLflow keeps 36 characters of a digest, so the whole one is a tag beside it."""
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for one in datasets:
        facts = {"shadowft.data": one["digest"], "shadowft.rows": one["rows"]}
        source = CodeDatasetSource({"path": one["source"], "digest": one["digest"]})
        short = one["digest"].removeprefix("sha256:")[:36]
        dataset = MetaDataset(source, name=one["name"], digest=short)
        try:
            mlflow.log_input(dataset, context=one["context"], tags=facts)
        except (MlflowException, SQLAlchemyError) as error:
            if "UNIQUE constraint" not in str(error) and "IntegrityError" not in str(error):
                raise
            # MLflow looks first and inserts then; somebody who registers the same data was faster, now it finds it
            mlflow.log_input(dataset, context=one["context"], tags=facts)


def settled(client: Any, name: str, key: str) -> Any | None:
    """The one version with this key, or None. Of several, made at the same moment, the first stays.

    Every writer looks after it wrote, and a higher number was written later, so each later row is seen by its writer.
    """
    from mlflow.exceptions import MlflowException

    first, *rest = versions_with(client, name, "shadowft.key", key) or [None]
    for row in rest:
        if not row.aliases:
            try:
                client.delete_model_version(name, row.version)
                client.delete_run(row.run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the other writer was faster
                    raise
    return first


def versions_with(client: Any, name: str, tag: str, value: str) -> list[Any]:
    """The versions that carry a tag, oldest first; deleted ones are not among them."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'")
    return sorted(found, key=lambda version: int(version.version))


def version_again(client: Any, name: str, source: str, run_id: str) -> Any:
    """A new version of a recipe whose version was deleted: same run, same files, same tags."""
    from mlflow.exceptions import MlflowException

    try:
        tags = {key: value for key, value in client.get_run(run_id).data.tags.items() if key.startswith("shadowft.")}
        return _create(client, name, source, run_id, tags)
    except MlflowException as error:
        raise RegistryError(
            f"{name}: run {run_id} or its recipe is gone from the registry ({_one_line(error)}); roll back to another "
            "version with `shadowft rollback --to VERSION`"
        ) from None


def point(client: Any, name: str, alias: str, number: int) -> None:
    """Let an alias point at a version, if it does not yet."""
    if alias_of(client, name, alias) != number:
        client.set_registered_model_alias(name, alias, str(number))


def alias_of(client: Any, name: str, alias: str) -> int | None:
    """The version an alias points at; None when it stands nowhere or the model was never registered."""
    from mlflow.exceptions import MlflowException

    try:
        number = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        number = None
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
