"""params.yaml as frozen models."""

from shadowft_core.params.reading import default_params, load_params, located, refuse_password
from shadowft_core.params.sections import (
    Evaluate,
    Extract,
    Fetch,
    Graft,
    Lora,
    Params,
    Prepare,
    Registry,
    Render,
    Route,
    Section,
    Store,
    Sweep,
    Train,
    Verdict,
)

__all__ = [
    "Evaluate",
    "Extract",
    "Fetch",
    "Graft",
    "Lora",
    "Params",
    "Prepare",
    "Registry",
    "Render",
    "Route",
    "Section",
    "Store",
    "Sweep",
    "Train",
    "Verdict",
    "default_params",
    "load_params",
    "located",
    "refuse_password",
]
