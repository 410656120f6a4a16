"""A registered version through MLflow's loader and scoring server: requests, parameters, what is logged."""

import importlib.metadata
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException

from shadowft_core.errors import CheckpointError, InputError
from shadowft_core.params import Store
from shadowft_core.recipe_model import RecipeModel, _load_pyfunc
from tests.fixtures.models import save_tokenizer
from tests.fixtures.runs import Run
from tests.test_house import CORE, imports, modules

ROOT = Path(__file__).parent.parent
USER = {"role": "user", "content": "word1 word2"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "word1"}, {"type": "text", "text": "word2"}]}
LONG = [USER, {"role": "assistant", "content": "word3"}, USER]
FRAME = {"columns": ["messages"], "data": [[[USER]], [LONG]]}

Judged = tuple[Store, list[tuple[str, str, dict[str, str]]]]


@pytest.fixture(scope="module")
def model(judged: Judged, tracking: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHADOWFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(tracking)
        yield mlflow.pyfunc.load_model("models:/judged/1")


@pytest.fixture(scope="module")
def replies(model: Any) -> tuple[str, str]:
    """The replies to [USER] and to LONG, which differ."""
    first, second = model.predict([[USER], LONG])
    assert first != second
    return first, second


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"messages": [USER]}, [0]),
        ({"messages": [PARTS]}, [0]),
        ({"messages": [USER | {"name": None}]}, [0]),
        ({"messages": [[USER], LONG]}, [0, 1]),
        ([USER], [0]),
        (LONG, [1]),
        ([[USER], LONG], [0, 1]),
        ([{"messages": [USER]}, {"messages": LONG}], [0, 1]),
        (pd.DataFrame({"messages": [[USER], LONG]}), [0, 1]),
        (pd.DataFrame({"messages": [[PARTS]]}, index=[7]), [0]),
        (pd.DataFrame(LONG), [1]),
        (pd.Series([[USER], LONG]), [0, 1]),
        (np.array([[USER], [USER]], dtype=object), [0, 0]),
    ],
)
def test_every_form_of_request_gives_the_same_reply(
    model: Any, replies: tuple[str, str], sent: Any, expected: list[int]
) -> None:
    assert model.predict(sent) == [replies[number] for number in expected]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [USER]}, [0]),
        ({"messages": [PARTS]}, [0]),
        ({"inputs": [USER]}, [0]),
        ({"inputs": [[USER], [USER]]}, [0, 0]),
        ({"inputs": {"messages": LONG}}, [1]),
        ({"inputs": [{"messages": [USER]}, {"messages": LONG}]}, [0, 1]),
        ({"dataframe_split": FRAME}, [0, 1]),
        ({"dataframe_records": [{"messages": [USER]}, {"messages": LONG}]}, [0, 1]),
        ({"instances": [{"messages": [USER]}, {"messages": [PARTS]}]}, [0, 0]),
    ],
)
def test_every_form_of_json_gives_the_same_reply(
    model: Any, replies: tuple[str, str], body: dict[str, Any], expected: list[int]
) -> None:
    assert answered(model, body) == [replies[number] for number in expected]


def answered(model: Any, body: Any) -> Any:
    """The reply of MLflow's scoring server to a JSON request, without a server process."""
    from mlflow.pyfunc.scoring_server import invocations

    reply = invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
    assert reply.status == 200
    found = json.loads(reply.response)
    return found["predictions"] if isinstance(found, dict) else found


@pytest.mark.parametrize(
    ("sent", "params", "message"),
    [
        ("Hello", {}, "expected a list of messages, found 'Hello'"),
        (5, {}, "expected a list of messages, found 5"),
        ([], {}, "no conversation; send"),
        ({}, {}, "messages: missing; found an empty object"),
        ({"prompt": "Hello"}, {}, "messages: missing; found prompt"),
        ({"messages": "Hello"}, {}, "a list of messages, found 'Hello'"),
        ({"messages": []}, {}, "a conversation has no message"),
        ([[USER], []], {}, "a conversation has no message"),
        ([[USER], USER], {}, "messages: missing; found role, content"),
        ({"messages": ["Hello"]}, {}, "message 1: expected an object with role and content, found 'Hello'"),
        ({"messages": [USER, {"content": "x"}]}, {}, "message 2: role is none; expected one of system, user"),
        ({"messages": [USER | {"role": "robot"}]}, {}, "message 1: role is 'robot'"),
        ({"messages": [{"role": "user"}]}, {}, "message 1: content is none; expected text or a list of text parts"),
        ({"messages": [USER | {"content": 3}]}, {}, "message 1: content is 3"),
        ({"messages": [USER | {"content": []}]}, {}, "message 1: content is none"),
        ({"messages": [USER | {"content": "\ud800"}]}, {}, "a lone surrogate"),
        (
            {"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            {},
            "message 1: a part of its content is {'type': 'image_url'.*; expected",
        ),
        ({"messages": [USER | {"tool_calls": [1]}]}, {}, "message 1: tool_calls is not supported"),
        (
            {"messages": [USER], "top_p": 0.5},
            {},
            "top_p: unknown field next to messages; the parameters are max_new_tokens",
        ),
        ({"messages": [USER], "max_tokens": 5}, {}, "max_tokens: unknown field next to messages"),
        (pd.DataFrame({"text": ["Hello"]}), {}, "messages: missing; found text"),
        (pd.DataFrame({"messages": [[USER], None]}), {}, "a list of messages, found none"),
        ({"messages": [USER | {"content": "word1 " * 61}]}, {}, "64 tokens, the model takes 64 including its reply"),
        ([USER], {"max_new_tokens": 0}, "max_new_tokens: expected a whole number of at least 1, found 0"),
        ([USER], {"max_new_tokens": 2.5}, "max_new_tokens"),
        ([USER], {"max_new_tokens": "many"}, "max_new_tokens"),
        ([USER], {"temperature": -1}, r"temperature: expected 0 or a number from 0\.001 to 100, found -1\.0"),
        ([USER], {"temperature": float("nan")}, "temperature: .*, found nan"),
        ([USER], {"temperature": float("inf")}, "temperature: .*, found inf"),
        ([USER], {"temperature": 1e-40}, "temperature: .*, found 1e-40"),
        ([USER], {"temperature": "warm"}, "temperature"),
        ([USER], {"stop": "word5"}, "stop"),
        ([USER], {"stop": [""]}, "stop: expected a string or a list of strings, none empty"),
        ([USER], {"stop": [5]}, "stop"),
    ],
)
def test_a_malformed_request_is_refused_in_one_line(
    model: Any, sent: Any, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlflowException, match=message) as error:
        model.predict(sent, params=params)
    assert "\n" not in error.value.message
    assert error.value.get_http_status_code() == 400, "the server then shows the line and no traceback"


def test_a_version_takes_no_settings_and_needs_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_config: temperature is not known; a version takes no settings"):
        _load_pyfunc(str(tmp_path), {"temperature": 1})
    save_tokenizer(tmp_path, template=False)
    with pytest.raises(CheckpointError, match="its tokenizer has no chat template; use a chat model"):
        RecipeModel(tmp_path)


def test_the_parameters_take_effect(model: Any, replies: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    inner = model._model_impl._model
    generate = inner.generate

    def counted(**options: Any) -> Any:
        tokens = generate(**options)
        made.append(tokens.shape[1] - options["input_ids"].shape[1])
        return tokens

    monkeypatch.setattr(inner, "generate", counted)
    words = replies[0].split()
    stop = next(word for word in words[2:] if word not in words[:2])
    assert model.predict([USER]) == [replies[0]]
    whole = made.pop()
    (short,) = model.predict([USER], params={"max_new_tokens": 3})
    assert made.pop() == 3
    assert replies[0].startswith(short)
    assert len(short) < len(replies[0])
    (cut,) = model.predict([USER], params={"stop": ["nowhere", stop]})
    assert cut == replies[0].partition(stop)[0]
    assert made.pop() < whole, "generation ends at the stop text"
    (both,) = model.predict([USER], params={"stop": [stop, words[1]]})
    assert both == replies[0].partition(words[1])[0]
    drawn = {model.predict([USER], params={"temperature": 5.0, "max_new_tokens": 20})[0] for _ in range(4)}
    assert len(drawn) == 4
    assert answered(model, {"messages": [USER], "max_new_tokens": 3, "temperature": 0}) == [short]
    assert answered(model, {"inputs": [USER], "params": {"max_new_tokens": 3}}) == [short]
    assert answered(model, {"messages": [USER], "stop": [stop]}) == [cut]


def test_a_reply_fits_has_no_special_token_and_is_made_alone(
    model: Any, replies: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, tokenizer = model._model_impl._model, model._model_impl._tokenizer
    generate, running, lengths = inner.generate, [], []

    def ended(**options: Any) -> Any:
        running.append(threading.get_ident())
        tokens = generate(**options)
        lengths.append(tokens.shape[1])
        time.sleep(0.2)
        assert running == [threading.get_ident()], "a server calls from many threads"
        running.clear()
        special = torch.tensor([[tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens[0])]])
        return torch.cat([tokens, special], dim=1)

    monkeypatch.setattr(inner, "generate", ended)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(model.predict, [[USER], LONG])) == [[one] for one in replies]
    (first,) = model.predict([USER], params={"stop": [replies[0].split()[0]]})
    assert first == "", "the reply begins with the stop text"
    lengths.clear()
    model.predict([USER | {"content": "word1 " * 54}])
    assert lengths == [64], "the model takes 64 tokens"
    monkeypatch.setattr(tokenizer, "chat_template", "{{ raise_exception('no\\n  such role') }}")
    with pytest.raises(MlflowException, match=r"conversation 1: the model's chat template refuses it: no such role$"):
        model.predict([USER])


def test_a_logged_model_names_installed_code_and_exact_versions(model: Any, judged: Judged) -> None:
    import mlflow
    from packaging.requirements import Requirement

    folder = Path(mlflow.artifacts.download_artifacts("models:/judged/1"))
    described = yaml.safe_load((folder / "MLmodel").read_text())
    flavor = described["flavors"]["python_function"]
    assert (flavor["loader_module"], flavor["code"]) == ("shadowft_core.recipe_model", None)
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".pkl", ".so")]
    assert described["metadata"] == {"shadowft.recipe": judged[1][0][2]["shadowft.recipe"]}
    assert [spec["name"] for spec in json.loads(described["signature"]["params"])] == [
        "max_new_tokens",
        "temperature",
        "stop",
    ]
    assert json.loads((folder / "input_example.json").read_text()) == model.input_example
    assert answered(model, json.loads((folder / "serving_input_example.json").read_text()))

    pinned = {}
    for line in (folder / "requirements.txt").read_text().splitlines()[:-1]:  # the last is this project's wheel
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == "=="
        assert importlib.metadata.version(requirement.name).partition("+")[0] == only.version
        pinned[requirement.name.lower().replace("_", "-")] = only.version
    assert not [name for name in pinned if name.startswith("shadow")], "a package index may have another shadowft"
    conda = yaml.safe_load((folder / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert set(conda) == set((folder / "requirements.txt").read_text().split())
    distributions = importlib.metadata.packages_distributions()
    imported = {
        top: {name.lower().replace("_", "-") for name in distributions[top]}
        for module in loaded_modules("shadowft_core.recipe_model")
        for name in imports(file_of(module))
        if (top := name.split(".")[0]) not in sys.stdlib_module_names and top != "shadowft_core"
    }
    missing = {top for top, names in imported.items() if not names & set(pinned)}
    assert not missing, f"the loader imports {missing}"
    unused = set(pinned) - set().union(*imported.values())
    assert unused == {"tokenizers"}, "which transformers imports for the loader"


def loaded_modules(start: str) -> set[str]:
    """Every module of the project that an import of `start` can load: what it imports, and the rooms around that."""
    known, seen, queue = modules(), set(), [start]
    while queue:
        if (module := queue.pop()) not in seen:
            seen.add(module)
            names = module.split(".")
            queue += [*known[module], *(".".join(names[:n]) for n in range(2, len(names)))]
    return seen


def file_of(module: str) -> Path:
    path = CORE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_registering_builds_no_model(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'somebody'\nversion = '1'\n")
    monkeypatch.chdir(tmp_path)  # MLflow would take a uv project for the model's environment
    run.register()
    assert not list((tmp_path / "cache").glob("[0-9a-f]" * 64))
    artifacts = Path(run.params.registry.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
    assert not list(artifacts.rglob("uv.lock"))
