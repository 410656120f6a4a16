"""Shadow-FT: tune the Base, graft the delta on the Instruct, judge the result.

Importing this package switches the telemetry of every dependency off, keeps model hubs offline and numpy at one thread
a call, unless the environment already says otherwise. Only what was asked to download lifts the offline switch.
"""

import os

_QUIET = {
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
    "OPENBLAS_NUM_THREADS": "1",  # the weight rooms spread tensors over threads of their own
}
for _name, _value in _QUIET.items():
    os.environ.setdefault(_name, _value)
