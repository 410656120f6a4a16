"""A registered version serves as people ask, through MLflow's own loader, scoring server and command line."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from shadowft_core.params import Store
from tests.fixtures.runs import Run
from tests.test_house import closure, imports, room_files

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
        mlflow.set_registry_uri(tracking)  # what an earlier test used, otherwise
        yield mlflow.pyfunc.load_model("models:/judged/1")


@pytest.fixture(scope="module")
def replies(model: Any) -> tuple[str, str]:
    """To [USER] and to LONG; they differ."""
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
def test_every_form_of_request_means_the_same(
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
def test_every_form_of_json_means_the_same(
    model: Any, replies: tuple[str, str], body: dict[str, Any], expected: list[int]
) -> None:
    assert answered(model, body) == [replies[number] for number in expected]


def answered(model: Any, body: Any) -> Any:
    """What the scoring server makes of a JSON request: its own code, without the process around it."""
    from mlflow.pyfunc.scoring_server import invocations

    said = invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
    assert said.status == 200
    found = json.loads(said.response)
    return found["predictions"] if isinstance(found, dict) else found


@pytest.mark.parametrize(
    ("sent", "params", "message"),
    [
        ("Hello", {}, "a conversation is a list of messages, found 'Hello'"),
        (5, {}, "a conversation is a list of messages, found 5"),
        ([], {}, "no conversation; send"),
        ({}, {}, "messages: missing; found an empty object"),
        ({"prompt": "Hello"}, {}, "messages: missing; found prompt"),
        ({"messages": "Hello"}, {}, "a list of messages, found 'Hello'"),
        ({"messages": []}, {}, "a conversation has no message"),
        ([[USER], []], {}, "a conversation has no message"),
        ([[USER], USER], {}, "messages: missing; found role, content"),
        ({"messages": ["Hello"]}, {}, "message 1: an object with role and content is wanted, found 'Hello'"),
        ({"messages": [USER, {"content": "x"}]}, {}, "message 2: role is none; one of system, user"),
        ({"messages": [USER | {"role": "robot"}]}, {}, "message 1: role is 'robot'"),
        ({"messages": [{"role": "user"}]}, {}, "message 1: content is none; text or a list of text parts"),
        ({"messages": [USER | {"content": 3}]}, {}, "message 1: content is 3"),
        ({"messages": [USER | {"content": []}]}, {}, "message 1: content is none"),
        ({"messages": [USER | {"content": "\ud800"}]}, {}, "half a character"),
        (
            {"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            {},
            "message 1: a part of its content is {'type': 'image_url'.* is wanted",
        ),
        ({"messages": [USER | {"tool_calls": [1]}]}, {}, "message 1: tool_calls is not supported"),
        ({"messages": [USER], "top_p": 0.5}, {}, "top_p: not known beside messages; parameters are max_new_tokens"),
        ({"messages": [USER], "max_tokens": 5}, {}, "max_tokens: not known beside messages"),
        (pd.DataFrame({"text": ["Hello"]}), {}, "messages: missing; found text"),
        (pd.DataFrame({"messages": [[USER], None]}), {}, "a list of messages, found none"),
        ({"messages": [USER | {"content": "word1 " * 61}]}, {}, "64 tokens, the model takes 64 with its reply"),
        ([USER], {"max_new_tokens": 0}, "max_new_tokens: a whole number from 1 on is wanted, found 0"),
        ([USER], {"max_new_tokens": 2.5}, "max_new_tokens"),
        ([USER], {"max_new_tokens": "many"}, "max_new_tokens"),
        ([USER], {"temperature": -1}, r"temperature: 0 or a number from 0\.001 to 100 is wanted, found -1\.0"),
        ([USER], {"temperature": float("nan")}, "temperature: .*, found nan"),
        ([USER], {"temperature": float("inf")}, "temperature: .*, found inf"),
        ([USER], {"temperature": 1e-40}, "temperature: .*, found 1e-40"),
        ([USER], {"temperature": "warm"}, "temperature"),
        ([USER], {"stop": "word5"}, "stop"),
        ([USER], {"stop": [""]}, "stop: a text or a list of texts is wanted, none empty"),
        ([USER], {"stop": [5]}, "stop"),
    ],
)
def test_what_is_no_request_is_refused_in_one_line(model: Any, sent: Any, params: dict[str, Any], message: str) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as error:
        model.predict(sent, params=params)
    assert "\n" not in error.value.message
    assert error.value.get_http_status_code() == 400, "so that the server shows the line and no traceback"


def test_the_parameters_are_honoured(model: Any, replies: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert made.pop() < whole, "generation ends there, it is not cut afterwards"
    (both,) = model.predict([USER], params={"stop": [stop, words[1]]})
    assert both == replies[0].partition(words[1])[0]
    drawn = {model.predict([USER], params={"temperature": 5.0, "max_new_tokens": 20})[0] for _ in range(4)}
    assert len(drawn) == 4
    assert answered(model, {"messages": [USER], "max_new_tokens": 3, "temperature": 0}) == [short]
    assert answered(model, {"inputs": [USER], "params": {"max_new_tokens": 3}}) == [short]
    assert answered(model, {"messages": [USER], "stop": [stop]}) == [cut]


def test_what_is_logged_names_installed_code_and_exact_versions(model: Any, judged: Judged) -> None:
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

    wanted = {}
    for line in (folder / "requirements.txt").read_text().splitlines():
        requirement = Requirement(line)
        (only,) = requirement.specifier
        assert only.operator == "=="
        assert importlib.metadata.version(requirement.name).partition("+")[0] == only.version
        wanted[requirement.name.lower().replace("_", "-")] = only.version
    assert not [name for name in wanted if name.startswith("shadow")], "an index may have another package of that name"
    conda = yaml.safe_load((folder / "conda.yaml").read_text())["dependencies"][-1]["pip"]
    assert set(conda) == set((folder / "requirements.txt").read_text().split())
    distributions = importlib.metadata.packages_distributions()
    needed = {
        top: {name.lower().replace("_", "-") for name in distributions[top]}
        for room in closure("recipe_model")
        for path in room_files(room)
        for module in imports(path)
        if (top := module.split(".")[0]) not in sys.stdlib_module_names and top != "shadowft_core"
    }
    missing = {top for top, names in needed.items() if not names & set(wanted)}
    assert not missing, f"the loader imports {missing}"


def test_registering_builds_no_model(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "uv.lock").write_text("version = 1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'somebody'\nversion = '1'\n")
    monkeypatch.chdir(tmp_path)  # a project of uv, which MLflow would take for the model's own
    run.register()
    assert not list((tmp_path / "cache").glob("[0-9a-f]" * 64))
    artifacts = Path(run.params.registry.tracking_uri.removeprefix("sqlite:///")).parent / "artifacts"
    assert not list(artifacts.rglob("uv.lock"))


@pytest.mark.slow
def test_people_serve_and_predict_from_a_fresh_folder(run: Run, tmp_path: Path) -> None:
    """The commands of MLflow, each a process of its own, in a folder that knows nothing of this project."""
    name = run.register().name
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": run.params.registry.tracking_uri,
        "SHADOWFT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    (fresh / "request.json").write_text(json.dumps({"messages": [USER], "max_new_tokens": 4}))
    mlflow = [sys.executable, "-m", "mlflow", "models"]
    version = ["-m", f"models:/{name}@challenger", "--env-manager", "local"]
    done = subprocess.run(
        [*mlflow, "predict", *version, "-i", "request.json", "-o", "reply.json"],
        cwd=fresh,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (reply,) = json.loads((fresh / "reply.json").read_text())

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = (tmp_path / "serve.log").open("w+")
    server = subprocess.Popen(
        [*mlflow, "serve", *version, "--host", "127.0.0.1", "--port", str(port)],
        cwd=fresh,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, log.name)
        assert post(port, {"messages": [USER], "max_new_tokens": 4}) == (200, [reply])
        assert post(port, {"messages": [PARTS], "max_new_tokens": 4}) == (200, [reply])
        two = {"inputs": [[USER], [USER]], "params": {"max_new_tokens": 4}}
        assert post(port, two) == (200, {"predictions": [reply, reply]})
        frame = {"dataframe_split": {"columns": ["messages"], "data": [[[USER]]]}, "params": {"max_new_tokens": 4}}
        assert post(port, frame) == (200, {"predictions": [reply]})
        status, said = post(port, {"messages": [{"role": "robot", "content": "x"}]})
        assert (status, said["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert said["message"].splitlines()[-1].startswith("Error: message 1: role is 'robot'; one of ")
        assert "stack_trace" not in said
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
        log.close()
    assert sorted(path.name for path in fresh.iterdir()) == ["reply.json", "request.json"]


def wait_for(address: str, server: subprocess.Popen[bytes], log: str) -> None:
    deadline = time.monotonic() + 240
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(Path(log).read_text())


def post(port: int, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
