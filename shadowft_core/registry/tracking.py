"""Runs, versions and aliases in MLflow. No run or version is ever deleted."""

import re
import tempfile
from pathlib import Path
from typing import Any

from shadowft_core.errors import RegistryError
from shadowft_core.params import Registry
from shadowft_core.registry import card, serving
from shadowft_core.registry.connection import database_of, uri_of
from shadowft_core.registry.registration import Registration

_REFERENCE = re.compile(
    r"models:/([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:@([A-Za-z][A-Za-z0-9_-]{0,99})|/([1-9][0-9]{0,8}))"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
DUPLICATE = "shadowft.duplicate_of"  # tag of a version: number of the first version with the same key
SUPERSEDED = "shadowft.superseded_by"  # tag of an interrupted attempt's run: id of the run that has the version


def experiment(client: Any, registry: Registry, name: str) -> str:
    """Id of the experiment named after the model. With a database file, artifacts are stored next to that file."""
    from mlflow.exceptions import MlflowException

    uri = uri_of(registry)
    location = (database_of(uri).parent / "artifacts").as_uri() if uri.startswith("sqlite:///") else None
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    return str(found.experiment_id)


def log(client: Any, registry: Registry, registration: Registration) -> str:
    """Log one finished run, create one version with all its tags, and return the id of the run.

    The version gets its key when it is created, so no version is incomplete. `tidy` marks the runs of failed attempts.
    """
    import mlflow
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    recipe, tags = registration.recipe, registration.tags
    place = experiment(client, registry, registration.name)
    run_name = f"{registration.name} {recipe['digest'][7:19]}"
    with (
        tempfile.TemporaryDirectory() as folder,
        mlflow.start_run(experiment_id=place, run_name=run_name, tags=tags) as run,
    ):
        client.set_tag(run.info.run_id, MLFLOW_RUN_NOTE, card.card(registration, place, run.info.run_id))
        mlflow.log_params(registration.params)
        _log_datasets(registration.datasets)
        attached = Path(folder, "files")
        attached.mkdir()
        for name, data in registration.files.items():
            (attached / name).write_bytes(data)
        mlflow.log_artifacts(str(attached))
        model = serving.log_model(client, place, run.info.run_id, recipe, registration.params)
        mlflow.log_metrics(registration.metrics, model_id=model.model_id)
    try:
        client.create_registered_model(registration.name, description=card.MODEL)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    create(client, registration.name, model.model_uri, run.info.run_id, tags)
    return str(run.info.run_id)


def create(client: Any, name: str, source: str, run_id: str, tags: dict[str, str]) -> Any:
    """Create a version of a logged model. A server needs the model's id in addition to the source `models:/ID`."""
    return client.create_model_version(
        name, source, run_id=run_id, tags=tags, model_id=source.removeprefix("models:/"), await_creation_for=0
    )


def describe(client: Any, version: Any) -> None:
    """Copy the run's description to a version that has none. An existing one may have been edited by a person."""
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    if not version.description and (text := client.get_run(version.run_id).data.tags.get(MLFLOW_RUN_NOTE)):
        number = str(version.version)
        client.update_model_version(version.name, number, text.replace(card.NUMBER, number))


def _log_datasets(datasets: list[dict[str, str]]) -> None:
    """Log the splits as inputs of the run. MLflow stores 36 characters of a digest, so a tag has all of it."""
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
            # MLflow looks the dataset up before it inserts it; another process inserted it in between
            mlflow.log_input(dataset, context=one["context"], tags=facts)


def deduplicate(client: Any, name: str, key: str) -> Any | None:
    """Return the first version with this key, or None. Tags the others, made at the same moment, as its duplicates.

    They are not deleted, because an alias or the ledger may name them. The tag DUPLICATE has the number of the first.
    Every writer calls this after it wrote, and a higher number was written later, so the writer of a duplicate always
    finds it.
    """
    from mlflow.exceptions import MlflowException

    first, *rest = versions_with(client, name, "shadowft.key", key) or [None]
    try:
        for row in rest:
            if row.tags.get(DUPLICATE) != str(first.version):
                _mark_duplicate(client, name, str(row.version), str(first.version))
        if first is not None and DUPLICATE in first.tags:  # the version it duplicated was deleted
            client.delete_model_version_tag(name, str(first.version), DUPLICATE)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # another process deleted it at this moment
            raise
    return first


def _mark_duplicate(client: Any, name: str, number: str, first: str) -> None:
    """Tag a version as a duplicate. If two writers do so at once, a database refuses the second row."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client.set_model_version_tag(name, number, DUPLICATE, first)
    except (MlflowException, SQLAlchemyError):
        if client.get_model_version(name, number).tags.get(DUPLICATE) != first:
            raise


def tidy(client: Any, name: str, key: str) -> None:
    """Mark the unfinished runs of this key as KILLED, if a version exists.

    An attempt that was killed or lost its connection leaves a run RUNNING or FAILED, and the next attempt starts
    another run. The old run becomes KILLED, and its tag SUPERSEDED names the run of the version. The run of a version
    becomes FINISHED, even if another process marked it while it was being written.
    """
    experiment = client.get_experiment_by_name(name)
    versions = versions_with(client, name, "shadowft.key", key)
    if experiment is None or not versions:
        return
    complete = {row.run_id for row in versions}
    for run in client.search_runs([experiment.experiment_id], f"tags.`shadowft.key` = '{key}'"):
        if run.info.run_id in complete:
            if run.info.status != "FINISHED":
                client.set_terminated(run.info.run_id, "FINISHED")
        elif run.info.status not in ("FINISHED", "KILLED"):
            client.set_tag(run.info.run_id, SUPERSEDED, versions[0].run_id)
            client.set_terminated(run.info.run_id, "KILLED")


def tag_of(version: Any, name: str) -> str:
    """The digest that a tag of a version has. Raises RegistryError if the tag is missing or no digest."""
    found = (version.tags or {}).get(name)
    if not isinstance(found, str) or not _DIGEST.fullmatch(found):
        raise RegistryError(
            f"{version.name} version {version.version}: its tag {name} is {found!r:.80}, expected a digest; the "
            "registry was edited: delete this version there and register its run again"
        )
    return found


def number_of(version: Any) -> int:
    """The number of a version. Raises RegistryError if the registry answered something else."""
    if not _NUMBER.fullmatch(str(version.version)):
        raise RegistryError(
            f"{version.name}: the registry names a version {version.version!r:.80}, expected a number; check the server"
        )
    return int(version.version)


def versions_with(client: Any, name: str, tag: str, value: str) -> list[Any]:
    """The existing versions with this value of a tag, oldest first."""
    found = client.search_model_versions(f"name = '{name}' and tags.`{tag}` = '{value}'")
    return sorted(found, key=number_of)


def set_alias(client: Any, name: str, alias: str, number: int) -> None:
    """Set an alias to a version, unless it already names that version."""
    if alias_of(client, name, alias) != number:
        client.set_registered_model_alias(name, alias, str(number))


def alias_of(client: Any, name: str, alias: str) -> int | None:
    """The version that an alias names; None when it is not set or the model is not registered."""
    model = registered_model(client, name)
    number = None if model is None else (model.aliases or {}).get(alias)
    if number is not None and not _NUMBER.fullmatch(str(number)):
        raise RegistryError(
            f"{name}: the registry's alias {alias} is {number!r:.80}, expected a number; check the server"
        )
    return None if number is None else int(number)


def registered_model(client: Any, name: str) -> Any | None:
    """MLflow's registered model; None when there is none of this name."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def parsed(reference: str) -> tuple[str, str]:
    """Name, and version number or alias, of `models:/NAME/VERSION` or `models:/NAME@ALIAS`. Raises RegistryError."""
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise RegistryError(f"{reference!r}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    return match[1], match[2] or match[3]


def find(client: Any, name: str, version: str) -> Any:
    """A version by number or alias. Raises RegistryError when there is none."""
    from mlflow.exceptions import MlflowException

    parsed(f"models:/{name}/{version}" if version.isdigit() else f"models:/{name}@{version}")
    try:
        if version.isdigit():
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RegistryError(f"no version {version!r} of {name!r} in the registry; {_known(client, name)}") from None
        raise


def _known(client: Any, name: str) -> str:
    """What the registry has in place of a version that it lacks: other versions of the model, or other models."""
    if numbers := [found.version for found in client.search_model_versions(f"name='{name}'", max_results=5)]:
        return f"it has {', '.join(map(str, numbers))}"
    if names := [found.name for found in client.search_registered_models(max_results=5)]:
        return f"there are models {', '.join(names)}"
    return "a run makes one, or `shadowft register`"
