"""Checks that the files named in params.yaml exist, before a Prefect server starts and again in the flow."""

from collections.abc import Mapping
from pathlib import Path

from shadowft_core.errors import InputError, ParamsError
from shadowft_core.params import Params, refuse_password, require_text


def require_options(options: Mapping[str, str | None]) -> None:
    """Raise ParamsError for an option of a run that holds a password, or characters that are not allowed in a path,
    in the environment or on Prefect's server."""
    for option, value in options.items():
        try:
            require_text(value or "")
        except ValueError as error:
            raise ParamsError(f"{option} {value!r}: {error}") from None
        refuse_password(option, value or "")  # Prefect stores a flow's parameters


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
