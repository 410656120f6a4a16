"""Logs a recipe as a model that MLflow can load.

MLmodel names the loader's module, which is part of the installed package. The room recipe_model checks the recipe
before it loads anything. For MLflow's own environments the artifacts have the package as a wheel.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from shadowft_core.files import bytes_digest, canonical_json, write_atomically
from shadowft_core.registry.wheel import write_wheel

LOADER = "shadowft_core.recipe_model"
RECIPE = "artifacts/recipe.json"
EXAMPLE = {"messages": [{"role": "user", "content": "Hello"}]}
MAX_NEW_TOKENS = 256
TAG = "shadowft.recipe"
WHEELS = "wheels"  # the folder that MLflow's own wheeled models have

# Imported by the loader, or by transformers (tokenizers). This project itself comes as a wheel.
PACKAGES = (
    "boto3",
    "botocore",
    "huggingface-hub",
    "jinja2",
    "ml-dtypes",
    "mlflow",
    "numpy",
    "packaging",
    "pydantic",
    "pyyaml",
    "regex",
    "requests",
    "scipy",
    "sqlalchemy",
    "tokenizers",
    "torch",
    "transformers",
    "urllib3",
    "zstandard",
)


def requirements() -> list[str]:
    """The packages of the loader with the versions installed here, in pip's form."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]


def signature() -> Any:
    """MLflow's signature: the parameters of a request with their defaults, and the type of the replies.

    The input has an example but no schema: with a schema, MLflow would split conversations into columns and drop
    unknown fields. The loader reads all supported forms and refuses others.
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
    """Log the recipe as a model of a run; return it. It has a few kB, and the wheel; no weights.

    `mlflow.pyfunc.log_model` is not used because it would rebuild the whole model to run the example.
    """
    import tempfile

    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    raw = canonical_json(recipe)
    model = client.create_logged_model(experiment, name="recipe", source_run_id=run_id, params=params)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    mlmodel = Model(
        artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id, run_id=run_id
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "model")
        wheel = write_wheel(Path(folder), PACKAGES)
        mlflow.pyfunc.save_model(
            str(place),
            loader_module=LOADER,
            mlflow_model=mlmodel,
            signature=signature(),
            input_example=EXAMPLE,
            pip_requirements=[*requirements(), f"{WHEELS}/{wheel.name}"],
            metadata={TAG: bytes_digest(raw)},
        )
        write_atomically(place / RECIPE, raw)
        write_atomically(place / WHEELS / wheel.name, wheel.read_bytes())
        client.log_model_artifacts(model.model_id, str(place))
    return client.finalize_logged_model(model.model_id, "READY")
