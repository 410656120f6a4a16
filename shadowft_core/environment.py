"""The environment of the programs of this project: no telemetry, hubs offline, one thread under numpy.

`import shadowft_core` sets nothing: a library leaves its user's environment alone. A program calls `set_variables`
first of all, because the libraries read these variables when they are imported: the command line, the flow, the demos,
the benchmarks and the tests. Their child processes inherit the variables.
"""

import os
from collections.abc import Mapping

VARIABLES: Mapping[str, str] = {
    "DO_NOT_TRACK": "true",  # MLflow accepts only the word "true"
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # a reference to a hub lifts it for its own download only (remote/hub.py)
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "GIT_PYTHON_REFRESH": "quiet",
    "OPENBLAS_NUM_THREADS": "1",  # work is spread over tensors; a process with a pool of threads is not forked
}


def unset() -> dict[str, str]:
    """Those of `VARIABLES` that the environment lacks. A value that it has stays."""
    return {name: value for name, value in VARIABLES.items() if name not in os.environ}


def set_variables() -> None:
    """Make this process, and those it starts, one of ours. Call it before numpy or another library is imported."""
    os.environ.update(unset())
