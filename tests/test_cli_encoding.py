"""File names that are no text, and a stdout that is not UTF-8: every line is printed, JSON is always UTF-8."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shadowft_core.cli.output import print_answer
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import Pair

ROOT = Path(__file__).parent.parent
BYTES = os.fsdecode(b"caf\xe9 " + "中😀".encode())  # Latin-1 and UTF-8 in one name
SHOWN = "caf\\udce9 中😀"


@pytest.fixture
def model(tmp_path: Path, tiny_llama_pair: Pair) -> Path:
    """A model in a folder with such a name."""
    folder = tmp_path / BYTES
    folder.symlink_to(tiny_llama_pair.instruct)
    return folder


def test_names_that_are_no_text_are_escaped(shadowft: Shadowft, model: Path) -> None:
    done = shadowft("diff", model, model, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["first"]["path"].endswith(SHOWN)
    done = shadowft("diff", model, model)
    assert (done.code, SHOWN in done.out) == (0, True), done
    assert SHOWN in shadowft("receipt", model, "--json").refused_as_json(3, "CheckpointError")
    shadowft("receipt", model).refused(3, SHOWN)


def test_every_text_of_an_answer_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer("x", {BYTES: (BYTES, [{BYTES: 1}, None])})
    assert json.loads(capsys.readouterr().out) == {"format": 1, "kind": "x", SHOWN: [SHOWN, [{SHOWN: 1}, None]]}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_stdout_that_is_not_utf_8(model: Path, as_json: bool) -> None:
    command = [sys.executable, "-m", "shadowft_core.cli", "diff", *[os.fsencode(model)] * 2]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, *["--json"] * as_json], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    if as_json:
        assert json.loads(done.stdout.decode("utf-8"))["first"]["path"].endswith(SHOWN)
    else:
        assert SHOWN.replace("中😀", "\\u4e2d\\U0001f600") in done.stdout.decode("ascii")


def test_a_store_that_cannot_be_one(shadowft: Shadowft, tmp_path: Path) -> None:
    done = shadowft("store", "ls", "--store", BYTES, "--json")
    done.refused_as_json(3, "ParamsError", "--store", "s3://bucket/prefix")


def test_a_file_whose_name_is_no_text_is_refused_before_anything_is_written(
    shadowft: Shadowft, tmp_path: Path, tiny_llama_pair: Pair
) -> None:
    """A recipe, which is JSON, names every file it copies."""
    instruct = tmp_path / "instruct"
    instruct.mkdir()
    for file in tiny_llama_pair.instruct.iterdir():
        os.link(file, instruct / file.name)
    (instruct / f"{BYTES}.txt").touch()
    pair = ("--base", tiny_llama_pair.base, "--tuned", tiny_llama_pair.instruct)
    words = (*pair, "--onto-base", "--unrelated", "--scale", 1, "--out", tmp_path / "out")
    shadowft("graft", "--instruct", instruct, *words).refused(3, f"{SHOWN}.txt", "not UTF-8; rename")
    assert not (tmp_path / "out").exists()


def run_flow(program: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program in which `command` is the module of the flow's command line."""
    line = [sys.executable, "-c", f"from shadowft_core.pipeline import command; {program}", *map(os.fsencode, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(line, env=environment, capture_output=True, check=False)


def test_the_flow_shows_characters_that_its_stdout_lacks() -> None:
    done = run_flow("command.app = lambda **_: print('50 % █'); command.main()", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, b"50 % \\u2588\n"), done.stderr


def test_the_flow_refuses_a_workspace_whose_name_is_no_text(tmp_path: Path) -> None:
    """Prefect could not send it to its server."""
    workspace = tmp_path / BYTES
    workspace.mkdir()
    (workspace / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    done = run_flow("command.main()", "--workspace", str(workspace))
    assert (done.returncode, done.stdout) == (3, b"")
    assert SHOWN.encode() + b"': not UTF-8" in done.stderr


def test_data_cannot_have_a_name_that_is_no_text(shadowft: Shadowft, tmp_path: Path) -> None:
    """Parquet files, which are UTF-8, name the file of every row, and pyarrow opens no other path."""
    rows = [tmp_path / "rows.jsonl", tmp_path / f"{BYTES}.jsonl"]
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    for file in rows:
        file.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    shadowft("prepare", "--data", rows[0], "--out", tmp_path / BYTES).refused(3, "UTF-8; choose another --out")
    shadowft("prepare", "--data", rows[1], "--out", tmp_path / "out").refused(3, f"{SHOWN}.jsonl", "UTF-8")
    assert sorted(tmp_path.iterdir()) == sorted(rows)
