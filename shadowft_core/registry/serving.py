"""What is logged so that MLflow can load a version, and the checks before a loaded version is trusted.

MLmodel names the loader by its module, which comes from the installed package; the artifact store holds only data.
None of it is trusted by itself: the recipe must have the digest that the registered version carries.
"""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from shadowft_core.errors import RegistryError
from shadowft_core.files import bytes_digest, canonical_json, file_digest, write_atomically
from shadowft_core.params import Registry
from shadowft_core.registry.rebuild import read_recipe

LOADER = "shadowft_core.recipe_model"
RECIPE = "artifacts/recipe.json"
EXAMPLE = {"messages": [{"role": "user", "content": "Hello"}]}
MAX_NEW_TOKENS = 256
TAG = "shadowft.recipe"
_RESOLVED = "registered_model_meta"  # MLflow writes it into what it downloads for models:/NAME/3 or models:/NAME@alias

# What the loader imports, and the template engine of the tokenizers; never the project itself, which no index has.
PACKAGES = (
    "boto3",
    "botocore",
    "huggingface-hub",
    "jinja2",
    "ml-dtypes",
    "mlflow",
    "numpy",
    "pydantic",
    "pyyaml",
    "requests",
    "scipy",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
    "urllib3",
    "zstandard",
)


@dataclass(frozen=True)
class Registered:
    """A recipe that MLflow downloaded, held against the digest of its version."""

    recipe: dict[str, Any]
    digest: str
    registry: Registry | None
    """where the version is registered, and under which name; None when MLflow was not asked for a version"""
    number: int | None


def requirements() -> list[str]:
    """The packages of the loader at the versions installed here, as pip reads them."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]


def signature() -> Any:
    """The parameters of a request and their defaults, and the replies.

    The input has only an example: with a schema MLflow would cut conversations into columns, and drop what it does
    not name. The loader reads every form itself and refuses the rest.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    parameters = [
        ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS),
        ParamSpec("temperature", DataType.double, 0.0),
        ParamSpec("stop", DataType.string, [], shape=(-1,)),
    ]
    return ModelSignature(outputs=Schema([ColSpec(DataType.string)]), params=ParamSchema(parameters))


def log_model(client: Any, experiment: str, run_id: str, recipe: dict[str, Any], params: dict[str, str]) -> Any:
    """Log the recipe as a model of a run that MLflow can load; return it. A few kB, no code, no weights.

    Not `mlflow.pyfunc.log_model`, which would rebuild the whole model here to try the example on it.
    """
    import tempfile

    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    raw = canonical_json(recipe)
    model = client.create_logged_model(experiment, name="recipe", source_run_id=run_id, params=params)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    described = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id, run_id=run_id
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "model")
        mlflow.pyfunc.save_model(
            str(place),
            loader_module=LOADER,
            mlflow_model=described,
            signature=signature(),
            input_example=EXAMPLE,
            pip_requirements=requirements(),
            metadata={TAG: bytes_digest(raw)},
        )
        write_atomically(place / RECIPE, raw)
        client.log_model_artifacts(model.model_id, str(place))
    return client.finalize_logged_model(model.model_id, "READY")


def registered(folder: Path) -> Registered:
    """The recipe in a folder that MLflow made for a model; sends no request to a store.

    It must have the digest that MLmodel carries, and, when MLflow was asked for a version, the one that the version
    carries in the registry. Raises RegistryError when a digest differs, when it is not a recipe, or
    when MLflow does not answer.
    """
    from mlflow.models import Model

    file = folder / RECIPE
    if not file.is_file():
        raise RegistryError(f"{folder}: no {RECIPE}; a version made by `shadowft register` is wanted")
    digest = file_digest(file)
    expected = (Model.load(str(folder)).metadata or {}).get(TAG)
    if digest != expected:
        raise RegistryError(f"{file}: is {digest}, MLmodel says {expected}; the record was changed, register again")
    name, number = _version(folder)
    registry = None
    if name and number:
        registry = _registry(name)
        if registry is None:
            print(f"{name} version {number}: no registry is configured to check its recipe against", file=sys.stderr)
        elif (tagged := _tag(registry, number)) != digest:
            raise RegistryError(
                f"{name} version {number}: its recipe is {digest}, registered was {tagged}; the record was changed, "
                "register the run again"
            )
    return Registered(read_recipe(file), digest, registry, number if registry else None)


def _version(folder: Path) -> tuple[str | None, int | None]:
    """Name and number of the version that MLflow resolved into this folder; None, None for any other reference."""
    try:
        found = yaml.safe_load((folder / _RESOLVED).read_text(encoding="utf-8"))
        name, number = found["model_name"], found["model_version"]
        if name is None:  # models:/m-<id>
            return None, None
        return str(Registry(name=name).name), int(number)
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RegistryError(f"{folder / _RESOLVED}: not readable ({' '.join(str(error).split()):.200})") from None


def _registry(name: str) -> Registry | None:
    """The registry that MLflow resolves versions in; None when none was named and MLflow's default is not there."""
    import mlflow

    uri = mlflow.get_registry_uri()
    if not mlflow.is_tracking_uri_set() and not (
        uri.startswith("sqlite:///") and Path(uri.removeprefix("sqlite:///")).is_file()
    ):
        return None
    return Registry(name=name, tracking_uri=uri)


def _tag(registry: Registry, number: int) -> str | None:
    from shadowft_core.registry.tracking import connected, find

    with connected(registry) as client:
        found: str | None = find(client, registry.name, str(number)).tags.get(TAG)
        return found
