"""`mlflow models serve` and `predict` of a registered version, as processes; requests that MLflow has not checked."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.environment import VARIABLES
from shadowft_core.errors import InputError
from shadowft_core.recipe_model.requests import COLDEST, HOTTEST, Settings, conversations, settings
from tests.fixtures.runs import Run

ROOT = Path(__file__).parent.parent
USER = {"role": "user", "content": "word1 word2"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "word1"}, {"type": "text", "text": "word2"}]}


@pytest.mark.slow
def test_serve_and_predict_work_in_an_empty_folder(run: Run, tmp_path: Path) -> None:
    """MLflow's commands as separate processes, in a folder without this project."""
    name = run.register().name
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    theirs = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment = theirs | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
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
    (expected,) = json.loads((fresh / "reply.json").read_text())

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
        assert post(port, {"messages": [USER], "max_new_tokens": 4}) == (200, [expected])
        assert post(port, {"messages": [PARTS], "max_new_tokens": 4}) == (200, [expected])
        two = {"inputs": [[USER], [USER]], "params": {"max_new_tokens": 4}}
        assert post(port, two) == (200, {"predictions": [expected, expected]})
        frame = {"dataframe_split": {"columns": ["messages"], "data": [[[USER]]]}, "params": {"max_new_tokens": 4}}
        assert post(port, frame) == (200, {"predictions": [expected]})
        status, reply = post(port, {"messages": [{"role": "robot", "content": "x"}]})
        assert (status, reply["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert reply["message"].splitlines()[-1].startswith("Error: message 1: role is 'robot'; expected one of ")
        assert "stack_trace" not in reply
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


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (None, Settings(9)),
        ({"max_new_tokens": 1, "temperature": None}, Settings(1)),
        ({"temperature": COLDEST, "stop": "x"}, Settings(9, COLDEST, ("x",))),
        ({"temperature": HOTTEST, "stop": ["x", "y"]}, Settings(9, HOTTEST, ("x", "y"))),
        ({"temperature": COLDEST / 2}, "temperature: expected 0 or a number from"),
        ({"temperature": HOTTEST + 1}, "temperature: expected 0 or a number from"),
        ({"temperature": True}, "temperature: .*, found True"),
        ({"max_new_tokens": True}, "max_new_tokens: .*, found True"),
        ({"top_p": 0.5}, "params: top_p is not known; expected max_new_tokens"),
        ([1], r"params: expected an object, found \[1\]"),
    ],
)
def test_settings_that_no_signature_of_mlflow_has_checked(params: Any, expected: Settings | str) -> None:
    if isinstance(expected, Settings):
        assert settings(params, 9) == expected
    else:
        with pytest.raises(InputError, match=expected):
            settings(params, 9)


def test_parts_are_lines_and_a_role_next_to_messages_is_an_unknown_field() -> None:
    assert conversations([PARTS]) == [[{"role": "user", "content": "word1\nword2"}]]
    with pytest.raises(InputError, match="role: unknown field next to messages"):
        conversations({"messages": [USER], "role": "user"})
