"""Differences when DVC runs a verb. In a checkout it runs the code there; in another workspace the stage must have the
number that is recorded there; and placeholders of dvc.yaml are replaced.

DVC passes the command of a stage to a shell, so dvc.yaml has no value of params.yaml in it, but the placeholders
{route}, {model} and {graft}. This module replaces them by validated values of params.yaml.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from shadowft_core.errors import ParamsError

STAGE = "DVC_STAGE"  # set by DVC to the name of the running stage, such as train@shadow
PLACEHOLDERS = ("{route}", "{model}", "{graft}")


def run_code_of_workspace() -> None:
    """If DVC runs a stage, restart with the code of the current folder, or check the number of the stage.

    Raises InputError if the results of the stage differ from those that the workspace was made for.
    """
    if stage := os.environ.get(STAGE):
        run_code_of(Path())
        from shadowft_core.workspace import require_same_stage

        require_same_stage(stage)


def run_code_of(folder: Path) -> None:
    """Restart with the shadowft_core of a folder if it has another one.

    The command `shadowft` belongs to one checkout or environment. In another checkout (a clone, the folder of `dvc exp
    run --temp`), a stage would otherwise not run the code that DVC records the digest of.
    """
    code = folder / "shadowft_core"
    if (code / "cli").is_dir() and not code.samefile(Path(__file__).parents[1]):
        path = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        # -P: the current folder, which may be another checkout, does not come before `folder`.
        os.execv(sys.executable, [sys.executable, "-P", "-m", "shadowft_core.cli", *sys.argv[1:]])  # noqa: S606


def filled_in(arguments: Sequence[str], params: Path = Path("params.yaml")) -> list[str]:
    """Return the arguments of a verb, with the placeholders replaced if DVC runs the stage of a route.

    {route} is the name of the route, {model} the model it tunes. {graft} is its waiver, dropped if there is none.
    Raises ParamsError if params.yaml has no such route.
    """
    stage = os.environ.get(STAGE)
    if stage is None or not any(word in argument for argument in arguments for word in PLACEHOLDERS):
        return list(arguments)
    from shadowft_core.params import load_params

    routes, name = load_params(params).routes, stage.rpartition("@")[2]
    if name not in routes:
        raise ParamsError(f"{params}: stage {stage} needs route {name!r}; known routes are {', '.join(routes)}")
    route = routes[name]
    values = {"{route}": name, "{model}": route.model, "{graft}": route.graft}
    kept = (word for word in arguments if values.get(word) != "")
    return [re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], word) for word in kept]
