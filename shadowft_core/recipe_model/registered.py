"""Reads the recipe that MLflow downloaded, and checks it before it is trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shadowft_core.errors import RegistryError, say
from shadowft_core.files import file_digest
from shadowft_core.params import Registry
from shadowft_core.registry import read_recipe
from shadowft_core.registry.connection import connected
from shadowft_core.registry.serving import RECIPE, TAG
from shadowft_core.registry.tracking import find

_RESOLVED = "registered_model_meta"  # MLflow adds it to its download of models:/NAME/3 or models:/NAME@alias


@dataclass(frozen=True)
class Registered:
    """A recipe that MLflow downloaded, with the digest of its version."""

    recipe: dict[str, Any]
    digest: str
    registry: Registry | None
    """registry and name of the version; None if the reference named no version or no registry is configured"""
    number: int | None


def read_registered(folder: Path) -> Registered:
    """Read the recipe in a folder that MLflow made for a model. Sends no request to a store.

    Its digest must be that in MLmodel and, if the reference named a version, that in the version's tag. Raises
    RegistryError when a digest differs, when the file is not a recipe, or when MLflow does not answer.
    """
    from mlflow.models import Model

    file = folder / RECIPE
    if not file.is_file():
        raise RegistryError(f"{folder}: no {RECIPE}; load a version made by `shadowft register`")
    digest = file_digest(file)
    expected = (Model.load(str(folder)).metadata or {}).get(TAG)
    if digest != expected:
        raise RegistryError(
            f"{file}: its digest is {digest}, MLmodel has {expected}; the record was changed, register the run again"
        )
    name, number = _version(folder)
    registry = None
    if name and number:
        registry = _registry(name)
        if registry is None:
            say(f"{name} version {number}: no registry is configured to check its recipe against")
        elif (tag := _tag(registry, number)) != digest:
            raise RegistryError(
                f"{name} version {number}: the digest of its recipe is {digest}, its tag has {tag}; the record was "
                "changed, register the run again"
            )
    return Registered(read_recipe(file), digest, registry, number if registry else None)


def _version(folder: Path) -> tuple[str | None, int | None]:
    """Name and number of the version that MLflow downloaded into this folder; None, None for another reference."""
    try:
        found = yaml.safe_load((folder / _RESOLVED).read_text(encoding="utf-8"))
        name, number = found["model_name"], found["model_version"]
        if name is None:  # models:/m-<id>
            return None, None
        return str(Registry(name=name).name), int(number)
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RegistryError(
            f"{folder / _RESOLVED}: not readable ({' '.join(str(error).split()):.200}); load the version again"
        ) from None


def _registry(name: str) -> Registry | None:
    """The registry in which MLflow finds versions; None when none is set and MLflow's default does not exist."""
    import mlflow

    uri = mlflow.get_registry_uri()
    if not mlflow.is_tracking_uri_set() and not (
        uri.startswith("sqlite:///") and Path(uri.removeprefix("sqlite:///")).is_file()
    ):
        return None
    return Registry(name=name, tracking_uri=uri)


def _tag(registry: Registry, number: int) -> str | None:
    with connected(registry) as client:
        tag: str | None = find(client, registry.name, str(number)).tags.get(TAG)
        return tag
