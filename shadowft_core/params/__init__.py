"""params.yaml as frozen models."""

from shadowft_core.params.evaluating import Engine, Evaluate, Generation, Limits, Server
from shadowft_core.params.reading import default_params, load_params, load_verdict, located, refuse_password
from shadowft_core.params.routes import Route
from shadowft_core.params.section import Section, require_text
from shadowft_core.params.sections import (
    Extract,
    Fetch,
    Graft,
    Newest,
    Params,
    Prepare,
    Registry,
    Render,
    Replay,
    Store,
    Sweep,
    Thresholds,
    Verdict,
)
from shadowft_core.params.training import Checkpoint, Dpo, Launch, Lora, Osf, Plan, Train, Validation

__all__ = [
    "Checkpoint",
    "Dpo",
    "Engine",
    "Evaluate",
    "Extract",
    "Fetch",
    "Generation",
    "Graft",
    "Launch",
    "Limits",
    "Lora",
    "Newest",
    "Osf",
    "Params",
    "Plan",
    "Prepare",
    "Registry",
    "Render",
    "Replay",
    "Route",
    "Section",
    "Server",
    "Store",
    "Sweep",
    "Thresholds",
    "Train",
    "Validation",
    "Verdict",
    "default_params",
    "load_params",
    "load_verdict",
    "located",
    "refuse_password",
    "require_text",
]
