"""Engines: where the models of a run answer. Every engine gets the same prompts from the harness."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.evaluate.engines.door import Arm, Deltas, Engine, NotMeasured, Reply
from shadowft_core.evaluate.engines.hf import open_hf
from shadowft_core.evaluate.engines.parallel import open_parallel
from shadowft_core.evaluate.engines.server import open_server

if TYPE_CHECKING:
    from shadowft_core.params import Evaluate

__all__ = ["Arm", "Deltas", "Engine", "NotMeasured", "Reply", "open_engine"]


def open_engine(instruct: Path, tokenizer: Any, params: "Evaluate") -> AbstractContextManager[Engine]:
    """The engine of params.engine for an Instruct folder, with the tokenizer of its renderer."""
    opened = {"hf": open_hf, "server": open_server}[params.engine.kind]
    if params.engine.devices > 1:
        opened = open_parallel
    return opened(instruct, tokenizer, params)
