"""What differs when DVC runs a verb: it runs the code of the workspace, with the placeholders of its route filled in.

A shell reads the command of a stage, so dvc.yaml puts no value of params.yaml into it. It writes {route}, {model} and
{graft} instead, and the verb takes their values from the checked params.yaml, by the name of the stage.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from shadowft_core.errors import ParamsError

STAGE = "DVC_STAGE"  # what DVC calls the stage it runs, as in train@shadow
WORDS = ("{route}", "{model}", "{graft}")


def run_code_of_workspace() -> None:
    """When DVC runs a stage with another shadowft_core than that of the current folder, start again with the latter.

    The command `shadowft` belongs to one checkout. In another one (a clone, the folder of `dvc exp run --temp`) the
    stage would otherwise run code other than that whose digest DVC records.
    """
    here = Path("shadowft_core")
    if STAGE in os.environ and (here / "cli").is_dir() and not here.samefile(Path(__file__).parents[1]):
        path = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        os.execv(sys.executable, [sys.executable, "-m", "shadowft_core.cli", *sys.argv[1:]])  # noqa: S606


def filled_in(arguments: Sequence[str], params: Path = Path("params.yaml")) -> list[str]:
    """The arguments of a verb; when DVC runs the stage of a route, with the placeholders of that route filled in.

    {route} is its name, {model} the model it tunes, {graft} its waiver, if any. Raises ParamsError when params.yaml
    has no such route.
    """
    stage = os.environ.get(STAGE)
    if stage is None or not any(word in argument for argument in arguments for word in WORDS):
        return list(arguments)
    from shadowft_core.params import load_params

    routes, name = load_params(params).routes, stage.rpartition("@")[2]
    if name not in routes:
        raise ParamsError(f"{params}: stage {stage} needs route {name!r}; known routes are {', '.join(routes)}")
    route = routes[name]
    values = {"{route}": name, "{model}": route.model, "{graft}": route.graft}
    given = (word for word in arguments if values.get(word) != "")  # without a waiver, {graft} is dropped
    return [re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], word) for word in given]
