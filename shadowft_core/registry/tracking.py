"""The conversation with MLflow: bounded waits, one line per failure, no run or version deleted."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shadowft_core.errors import RegistryError, ShadowError, without_passwords
from shadowft_core.files import make_private_file
from shadowft_core.params import Registry
from shadowft_core.registry import card, serving
from shadowft_core.registry.registration import Registration

_REFERENCE = re.compile(
    r"models:/([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:@([A-Za-z][A-Za-z0-9_-]{0,99})|/([1-9][0-9]{0,8}))"
)
_SETTINGS = {  # by default a call blocks for four minutes when the server is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for what a verb answers
    "MLFLOW_UV_AUTO_DETECT": "false",  # a version needs what its requirements say, not what the folder holds
}


DUPLICATE = "shadowft.duplicate_of"  # on a version: the number of the first one with the same key
SUPERSEDED = "shadowft.superseded_by"  # on the run of an attempt that ended early: the run that took its place


@contextmanager
def connected(registry: Registry) -> Iterator[Any]:
    """An MLflow client with bounded waits; whatever MLflow or its database raise becomes one line."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = _uri(registry)
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
            f"registry at {uri}: {one_line(error)}; check that it runs and that registry.tracking_uri is right"
        ) from None
    except ModuleNotFoundError as error:  # SQLAlchemy imports a database driver on first use
        raise RegistryError(
            f"registry at {uri}: its driver {error.name} is not installed; for PostgreSQL install shadowft[postgres]"
        ) from None


def one_line(error: Exception) -> str:
    return without_passwords(" ".join(str(error).split()))[:300]


def _uri(registry: Registry) -> str:
    """Where the registry is; a path from the root. MLflow keeps an open database by its URI, whatever the folder:
    a second workspace in one process would write, without a word, into the database of the first."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or registry.tracking_uri
    if uri.startswith("sqlite:///"):
        path, mark, query = uri.removeprefix("sqlite:///").partition("?")
        return uri if path in ("", ":memory:") else f"sqlite:///{Path(path).absolute()}{mark}{query}"
    return uri if ":" in uri or uri.startswith("databricks") else Path(uri).absolute().as_uri()


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _experiment(client: Any, registry: Registry, name: str) -> str:
    """The experiment named as the model. With a database file the artifacts live beside it."""
    from mlflow.exceptions import MlflowException

    uri = _uri(registry)
    beside = (_database(uri).parent / "artifacts").as_uri() if uri.startswith("sqlite:///") else None
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=beside))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def log(client: Any, registry: Registry, registration: Registration) -> str:
    """One finished run and one version, which carries the key from the start, so that no version is incomplete.

    Returns the id of the run. `tidy` marks what failed attempts leave, once a version exists.
    """
    import mlflow
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    recipe, tags = registration.recipe, registration.tags
    experiment = _experiment(client, registry, registration.name)
    run_name = f"{registration.name} {recipe['digest'][7:19]}"
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(experiment_id=experiment, run_name=run_name, tags=tags) as run,
    ):
        client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, card.card(registration, experiment, run.info.run_id))
        mlflow.log_params(registration.params)
        _log_datasets(registration.datasets)
        attached = Path(folder, "files")
        attached.mkdir()
        for name, data in registration.files.items():
            (attached / name).write_bytes(data)
        mlflow.log_artifacts(str(attached))
        model = serving.log_model(client, experiment, run.info.run_id, recipe, registration.params)
        mlflow.log_metrics(registration.metrics, model_id=model.model_id)
    try:
        client.create_registered_model(registration.name, description=card.MODEL)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    create(client, registration.name, model.model_uri, run.info.run_id, tags)
    return str(run.info.run_id)


def create(client: Any, name: str, source: str, run_id: str, tags: dict[str, str]) -> Any:
    """A version of a logged model. A server wants its id beside the source `models:/ID`, a database does not care."""
    return client.create_model_version(
        name, source, run_id=run_id, tags=tags, model_id=source.removeprefix("models:/"), await_creation_for=0
    )


def describe(client: Any, version: Any) -> None:
    """Give a version the description that its run carries, unless it has one: a person may have edited it."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    if not version.description and (text := client.get_run(version.run_id).data.tags.get(MLFLOW_RUN_NOTE)):
        number = str(version.version)
        client.update_model_version(version.name, number, text.replace(card.NUMBER, number))


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
    """The one version with this key, or None. Of several, made at the same moment, it is the first.

    The others stay as they are, for an alias or the ledger may name them, and are marked by the tag DUPLICATE, whose
    value is the first's number. Every writer looks after it wrote, and a higher number was written later, so each later
    row is seen by its writer.
    """
    from mlflow.exceptions import MlflowException

    first, *rest = versions_with(client, name, "shadowft.key", key) or [None]
    try:
        for row in rest:
            if row.tags.get(DUPLICATE) != str(first.version):
                _mark_duplicate(client, name, str(row.version), str(first.version))
        if first is not None and DUPLICATE in first.tags:  # the one before it was deleted
            client.delete_model_version_tag(name, str(first.version), DUPLICATE)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # somebody deleted it at this moment
            raise
    return first


def _mark_duplicate(client: Any, name: str, number: str, first: str) -> None:
    """Two writers may mark one version at the same moment; a database then refuses the later one's row."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client.set_model_version_tag(name, number, DUPLICATE, first)
    except (MlflowException, SQLAlchemyError):
        if client.get_model_version(name, number).tags.get(DUPLICATE) != first:
            raise


def tidy(client: Any, name: str, key: str) -> None:
    """Mark every run of this key that seems to be running or failed as KILLED, now that a version exists.

    An attempt that was killed or disconnected leaves a run RUNNING or FAILED, and the attempt after it begins a new
    one. Such a run becomes KILLED and names its successor by the tag SUPERSEDED; the run of a version is FINISHED, even
    if another process took it for a stale one while it was written.
    """
    experiment = client.get_experiment_by_name(name)
    versions = versions_with(client, name, "shadowft.key", key)
    if experiment is None or not versions:
        return
    told = {row.run_id for row in versions}
    for run in client.search_runs([experiment.experiment_id], f"tags.`shadowft.key` = '{key}'"):
        if run.info.run_id in told:
            if run.info.status != "FINISHED":
                client.set_terminated(run.info.run_id, "FINISHED")
        elif run.info.status not in ("FINISHED", "KILLED"):
            client.set_tag(run.info.run_id, SUPERSEDED, versions[0].run_id)
            client.set_terminated(run.info.run_id, "KILLED")


def versions_with(client: Any, name: str, tag: str, value: str) -> list[Any]:
    """The versions that carry a tag, oldest first; deleted ones are not among them."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'")
    return sorted(found, key=lambda version: int(version.version))


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
