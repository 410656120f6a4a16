"""What the verb `train` connects a training with: MLflow, which follows it, the store, for its checkpoints, and the
user's own command, which may take its place."""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.cli.options import PARAMS_FILE
from shadowft_core.cli.workspace import STAGE

if TYPE_CHECKING:
    from shadowft_core.params import Params, Store, Train
    from shadowft_core.store import CheckpointCopies

Follow = Callable[[Mapping[str, Any]], AbstractContextManager[Callable[[Mapping[str, float]], None]]]


def followed_as(name: str, settings: "Params", params: Path | None) -> Follow:
    """A function from the identity of a training to its follower: a run called `name` in the registry of the settings.

    Without a params file there is no registry, and in pytest no training is followed.
    """
    if (params is None and not PARAMS_FILE.exists()) or "PYTEST_CURRENT_TEST" in os.environ:
        return lambda _: nullcontext(lambda _: None)
    from shadowft_core.registry.following import following

    return lambda identity: following(settings.registry, name, identity)


def copied_to(store: "Store") -> Callable[[str], "CheckpointCopies"]:
    """A function from the folder name of a training's checkpoints to their copies in the store."""
    from shadowft_core.store import checkpoint_copies

    return lambda key: checkpoint_copies(store, key)


def by_command(
    model: Path,
    instruct: Path,
    data: Path,
    settings: "Train",
    out: Path,
    params: "Params",
    route: str | None,
    seed: int | None,
    replay: bool,
) -> None:
    """Run `train.command` for a route; under DVC only if its files are watched. It works below `checkpoint.folder`."""
    from shadowft_core import train as room

    if STAGE in os.environ and route:
        room.require_watched(settings.words, route, params.routes[route].model)
    name = "-".join(["command", route or out.name, *([] if seed is None else [str(seed)])])
    scratch, ignore = Path(params.checkpoint.folder) / name, params.extract.ignore
    room.train_by_command(
        model, instruct, data, settings, out, route or out.name, scratch, replay=replay, ignore=ignore
    )
