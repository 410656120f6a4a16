"""Shadow-FT: tune the Base, graft the delta on the Instruct, judge the result.

The public API of the library is `__all__`. Its names are imported from their rooms on first use, so importing the
package loads no dependency. `__init__.pyi` gives type checkers the same names. A function that has the name of its room
(`prepare`, `train`, `evaluate`, `verdict`, `report`, `sweep`) is imported from that room.
"""

import os
from importlib import import_module

# Set here because the libraries read these variables when they are imported, and nearly every room imports one of them
# at its top. Any later place would leave library users with telemetry on, hubs online and a thread pool under numpy,
# which also prevents forked workers. Values that the environment already has stay; a reference to a hub lifts the
# offline switch for its own download only (remote/hub.py).
_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",  # MLflow accepts only the word "true"
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "GIT_PYTHON_REFRESH": "quiet",
    "OPENBLAS_NUM_THREADS": "1",  # work is spread over tensors instead
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

_SOURCES = {  # public name: module, and the name there
    "Checkpoint": "shadowft_core.weights:Checkpoint",
    "Delta": "shadowft_core.delta:Delta",
    "Options": "shadowft_core.grafting:Options",
    "Params": "shadowft_core.params:Params",
    "ShadowError": "shadowft_core.errors:ShadowError",
    "Store": "shadowft_core.params:Store",
    "check_pair": "shadowft_core.pair:check_pair",
    "export_adapter": "shadowft_core.export:export_adapter",
    "extract": "shadowft_core.delta:extract",
    "fetch_delta": "shadowft_core.store:fetch_delta",
    "graft_model": "shadowft_core.grafting:graft",  # the attribute `graft` is the room
    "load_params": "shadowft_core.params:load_params",
    "materialize": "shadowft_core.promotion:materialize",
    "open_checkpoint": "shadowft_core.weights:open_checkpoint",
    "open_delta": "shadowft_core.delta:open_delta",
    "publish": "shadowft_core.store:publish",
}

__all__ = ["__version__", *_SOURCES]  # noqa: PLE0604 the keys of a literal


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("shadowft")
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, source = _SOURCES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), source)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
