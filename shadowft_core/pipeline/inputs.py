"""Whether the files that params.yaml names are there: asked before a Prefect server starts, and again by the flow."""

from pathlib import Path

from shadowft_core.errors import InputError
from shadowft_core.params import Params


def require_inputs(params: Params, file: Path) -> None:
    """Raise InputError for data or tasks that do not exist; `params` is from `file`, in the folder of the workspace."""
    named = {"prepare.data": params.prepare.data, "evaluate.tasks": params.evaluate.tasks}
    if params.prepare.replay:
        named["prepare.replay.data"] = params.prepare.replay.data
    if params.prepare.newest and params.prepare.newest.since:
        named["prepare.newest.since"] = params.prepare.newest.since
    for name, path in named.items():
        if not (file.parent / path).exists():
            raise InputError(f"{file}: {name}: {path} does not exist; name an existing file or folder")
