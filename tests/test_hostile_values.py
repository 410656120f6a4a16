"""Every field of params.yaml that takes text, with what a shell would run, through the verb that reads it.

The value is a harmless literal or refused in one line. The fields are found in the models, so a new one is covered.
"""

import json
import os
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from shadowft_core.params import Params
from tests.fixtures.cli import Shadowft
from tests.fixtures.runs import Released
from tests.test_hostile_arguments import require_refused_or_done

VALUE = "$(touch PWNED)`touch PWNED`; touch PWNED |'\"&>* ${HOME} {0.__class__} %s #"
TRAIN = "train --model {model} --instruct {model} --data {data} --out tuned"
VERBS = {  # section: a verb that reads it
    "routes": TRAIN,
    "fetch": "fetch --out pair",
    "prepare": "prepare --out data",
    "render": TRAIN,
    "train": TRAIN,
    "checkpoint": TRAIN,
    "plan": "plan --pair {base} --data {data}",
    "extract": "extract --base {base} --tuned {instruct} --out delta",
    "sweep": "sweep --instruct {model} --delta {work}/delta/shadow --data {data} --out sweep.json",
    "graft": "graft --instruct {instruct} --delta {work}/delta/shadow --out grafted",
    "evaluate": "evaluate --instruct {model} --data {data} --out scores",
    "verdict": "verdict --scores {judged}/scores --recipe {recipe} --out verdict.json",
    "store": "store publish --delta {work}/delta/shadow",
    "registry": "history a-model",
}
BESIDE: dict[tuple[str, ...], dict[str, Any]] = {  # what must be set with a field
    ("prepare", "replay"): {"data": "{rows}", "share": 0.1},
    ("prepare", "newest", "by"): {},
    ("prepare", "newest", "since"): {"digest": "sha256:" + "0" * 64},
    ("prepare", "newest", "digest"): {"since": "{rows}"},
    ("evaluate", "engine"): {"kind": "server"},
    ("evaluate", "engine", "server"): {"model": "m", "url": "http://127.0.0.1:9/v1"},
    ("store", "sse_kms_key"): {"sse": "aws:kms"},
}


def texts(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path of each field with text below a type, and a function that makes its value of a text."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from texts(field.annotation, (*path, name))
        return
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is str or origin is typing.Literal:
        yield path, lambda text: text
    elif origin is dict:
        yield path, lambda text: {text: {}}
        yield path, lambda text: {text: 0.5}
        yield path, lambda text: {"a": text}
    elif origin is tuple:
        yield path, lambda text: [text, "{model} {name} {port}"]
    else:
        for one in inner[: 1 if origin is typing.Annotated else None]:
            yield from texts(one, path)


Params.model_rebuild()
FIELDS = [(".".join(path), path, make) for path, make in texts(Params)]


def test_the_fields_with_text_are_found() -> None:
    names = {name for name, _, _ in FIELDS}
    assert {"fetch.base", "train.command", "train.lora.targets", "evaluate.engine.server.url", "routes"} <= names
    assert {path[0] for _, path, _ in FIELDS} <= set(VERBS)


def written(path: tuple[str, ...], value: Any, materials: dict[str, str]) -> dict[str, Any]:
    """The content of a params.yaml that is sound but for the value at the path."""
    params: dict[str, Any] = yaml.safe_load(Path(materials["asked"]).read_text(encoding="utf-8"))
    params["fetch"] = {"base": materials["base"], "instruct": materials["instruct"]}
    params["prepare"]["data"] = materials["rows"]
    params["train"] = {"max_steps": 1}
    params["evaluate"] |= {"limit": 1, "kl_answers": 0}
    params["store"] = {"uri": "here"}
    at = params
    for depth, name in enumerate(path):
        below = BESIDE.get(path[: depth + 1], {})
        if depth == len(path) - 1:
            at |= {name: value} | below if not isinstance(at.get(name), dict) or not below else {name: value}
        else:
            at = at.setdefault(name, {})
            at |= {key: one.format(**materials) if isinstance(one, str) else one for key, one in below.items()}
    return params


@pytest.mark.slow
@pytest.mark.parametrize(("path", "make"), [field[1:] for field in FIELDS], ids=[field[0] for field in FIELDS])
def test_no_text_of_params_is_run(
    path: tuple[str, ...],
    make: Any,
    materials: dict[str, str],
    empty_folder: Path,
    released: Released,
    shadowft: Shadowft,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if path[0] == "registry":
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
    beside = sorted(os.listdir(empty_folder.parent))
    params = written(path, make(VALUE), materials)
    Path("params.yaml").write_text(json.dumps(params), encoding="utf-8")
    require_refused_or_done(shadowft(*(word.format(**materials) for word in VERBS[path[0]].split())), path)
    assert not list(empty_folder.parent.rglob("PWNED*"))
    assert sorted(os.listdir(empty_folder.parent)) == beside
