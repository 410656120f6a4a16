"""The wheel and its dependencies in a new environment: demo, init, run, promote, materialize, from an empty folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.package import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The folder of programs of an environment into which uv installed the wheel with the pinned dependencies."""
    place = tmp_path_factory.mktemp("installed") / "venv"
    uv = Path(sys.executable).with_name("uv")
    online = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}  # conftest.py
    links = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    if found := subprocess.run(links, env=online, capture_output=True, text=True, check=False).stdout.strip():
        online.setdefault("UV_FIND_LINKS", found)  # uv ignores pip's
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, place], env=online, check=True)
    install = [uv, "pip", "install", "-q", "--python", place / "bin/python", "-c", ROOT / "constraints.txt", wheel]
    done = subprocess.run(install, env=online, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the dependencies cannot be installed: {done.stderr.strip().splitlines()[-1]:.200}")
    return place / "bin"


def test_from_the_wheel_alone_to_a_champion(programs: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SHADOWFT_ROOT")}
    env["PATH"] = f"{programs}:/usr/local/bin:/usr/bin:/bin"

    def shadowft(folder: Path, *words: str | Path) -> str:
        done = subprocess.run(
            [programs / "shadowft", *words], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    assert "verdict: promote" in shadowft(tmp_path, "demo")
    pair = tmp_path / "shadowft-demo/work/pair"
    rows = json.loads((tmp_path / "shadowft-demo/data/train_alpaca.json").read_text(encoding="utf-8"))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:200]), encoding="utf-8")
    models = ["--base", pair / "base", "--instruct", pair / "instruct"]
    assert "cd mine && shadowft run" in shadowft(tmp_path, "init", "mine", *models, "--data", "rows.jsonl")
    mine = tmp_path / "mine"
    assert "verdict: " in shadowft(mine, "run")
    assert "champion of mine is version 1" in shadowft(mine, "promote", "mine", "1", "--override", "a test")
    rebuilt = shadowft(mine, "materialize", "models:/mine@champion", "--out", "rebuilt")
    digest = json.loads((mine / "work/verdict.json").read_bytes())["recipe_digest"]
    assert f"{digest}, as registered" in rebuilt
    states = {one["check"]: one["state"] for one in json.loads(shadowft(mine, "doctor", "--json"))["checks"]}
    assert "fail" not in states.values(), states
