"""Reading params.yaml, and what holds without one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from shadowft_core.errors import ParamsError, without_passwords
from shadowft_core.files.yamlfile import read_yaml
from shadowft_core.limits import PARAMS_BYTES
from shadowft_core.params.problems import problems
from shadowft_core.params.routes import ROUTES
from shadowft_core.params.section import Section
from shadowft_core.params.sections import Extract, Graft, Params, Render, Store, Verdict
from shadowft_core.params.training import Checkpoint, Plan, Train

_Model = TypeVar("_Model", bound=Section)


def located(store: Store) -> Store:
    """The store settings, with SHADOWFT_STORE_URI and SHADOWFT_STORE_ENDPOINT in place of uri and endpoint if set.

    Raises ParamsError when a variable holds a password (its value is copied into the recipe, and S3 needs none), and
    for a value that `Store` refuses.
    """
    names = {field: f"SHADOWFT_STORE_{field.upper()}" for field in ("uri", "endpoint")}
    changes = {field: value for field, name in names.items() if (value := os.environ.get(name))}
    for field, value in changes.items():
        refuse_password(names[field], value)
    try:
        return store.model_validate(store.model_dump() | changes)
    except ValidationError as error:
        raise ParamsError(f"{' and '.join(names[field] for field in changes)}: {problems(error, Store)}") from None


def refuse_password(name: str, text: str) -> None:
    """Raise ParamsError when `text`, the value of `name`, is a URL with a password."""
    if (shown := without_passwords(text)) != text:
        raise ParamsError(
            f"{name}: {shown} holds a password and would be copied into records; remove it. Set the registry's in "
            "MLFLOW_TRACKING_URI, or in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; the store's in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; the hub's token in HF_TOKEN"
        )


def load_params(path: Path) -> Params:
    """Read and check a params.yaml; the environment may name another store (`located`), and another registered model
    (SHADOWFT_REGISTRY_NAME, which the flow sets for the stages of a run under another name).

    Types are not converted: text is not a number, `yes` is not a boolean, and `1e-4` is a number, as DVC reads them.
    A URL with a password is refused: the file is in git, and is attached to every registered run.

    Raises ParamsError naming the file, every bad field and what was expected.
    """
    params = _valid(path, _tree(path), Params)
    for route in params.routes:
        try:
            params.train_for(route)
        except ParamsError as error:
            raise ParamsError(f"{path}: {error}") from None
    changes: dict[str, Any] = {"store": located(params.store)}
    if model := os.environ.get("SHADOWFT_REGISTRY_NAME"):
        changes["registry"] = params.registry.named(model)
    return params.model_copy(update=changes)


def load_verdict(path: Path) -> Verdict:
    """The section `verdict` of a params.yaml. It may be the only one: a verdict on scores of any origin needs no
    other.

    Raises ParamsError as `load_params` does.
    """
    tree = _tree(path)
    if isinstance(tree, dict) and set(tree) == {"verdict"}:
        return _valid(path, tree, _Alone).verdict
    return load_params(path).verdict


def default_params(**sections: Section) -> Params:
    """Parameters without a params.yaml: the given `sections`, and defaults for the others.

    Reading a section that is not given and has no defaults raises ParamsError.
    """
    defaults: dict[str, Any] = {
        **{
            "render": Render(),
            "train": Train(),
            "checkpoint": Checkpoint(),
            "plan": Plan(),
            "extract": Extract(),
            "graft": Graft(),
            "verdict": Verdict(),
        },
        "store": located(Store()),
    }
    return _Unwritten.model_construct(None, routes=ROUTES, **defaults | sections)


class _Unwritten(Params):
    """Parameters without a file."""

    def __getattr__(self, name: str) -> Any:
        if name in Params.model_fields:
            raise ParamsError(
                f"params.yaml: no such file, but `{name}` is needed; go to the folder of a workspace (`shadowft init` "
                "makes one), or pass --params FILE"
            )
        return super().__getattr__(name)  # type: ignore[misc]


class _Alone(Section):
    verdict: Verdict


def _tree(path: Path) -> Any:
    """What the file holds: lists, mappings and plain values, none of them a URL with a password."""
    if not path.exists():
        raise ParamsError(f"{path}: no such file; name an existing one with --params FILE")
    tree = read_yaml(path, PARAMS_BYTES)
    for name, value in _texts(tree):
        refuse_password(f"{path}: {name}", value)
    return tree


def _valid(path: Path, tree: Any, model: type[_Model]) -> _Model:
    text = json.dumps(tree)  # JSON has lists for Python's tuples, and the same types as YAML 1.2
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ParamsError(f"{path}: {problems(error, model)}") from None


def _texts(tree: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a YAML file, also the keys, with its dotted path."""
    if isinstance(tree, str):
        yield above.removesuffix("."), tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield f"{above}(a name)", str(name)
            yield from _texts(value, f"{above}{name}.")
    elif isinstance(tree, list):
        for place, value in enumerate(tree):
            yield from _texts(value, f"{above}{place}.")
