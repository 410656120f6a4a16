"""What params.yaml names on this machine: models, data, tasks."""

from pathlib import Path

from shadowft_core.doctor.finding import FAIL, OK, Finding
from shadowft_core.errors import ShadowError


def inputs(params: Path) -> list[Finding]:
    """Whether the folders and files of params.yaml exist. What a hub or a bucket has is not asked for."""
    from shadowft_core.pair.references import is_generated, is_remote
    from shadowft_core.params import load_params

    if not params.is_file():
        return []
    try:
        found = load_params(params)
    except ShadowError:
        return []  # `store` reports it
    named = {"fetch.base": found.fetch.base, "fetch.instruct": found.fetch.instruct}
    near = {name: path for name, path in named.items() if not (is_remote(path) or is_generated(path))}
    near |= {"prepare.data": found.prepare.data, "evaluate.tasks": found.evaluate.tasks}
    absent = [f"{name}: {path} does not exist" for name, path in near.items() if not Path(path).exists()]
    if absent:
        return [Finding("inputs", FAIL, "; ".join(absent), f"name what exists, in {params}")]
    return [Finding("inputs", OK, f"{', '.join(near)} exist")]
