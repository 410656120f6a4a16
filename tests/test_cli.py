"""Bad input at the command line: one line on stderr, the exit code of its class, no partial output."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.fixtures.checkouts import two_routes
from tests.fixtures.models import Pair

ROOT = Path(__file__).parent.parent
ROW = '{"messages": [{"role": "user", "content": "hi %d"}, {"role": "assistant", "content": "hello"}]}\n'


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace: params.yaml of the project without replay, an empty task folder, two good rows."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    two_routes(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(ROW % i for i in range(40)), encoding="utf-8")
    return tmp_path


def shadowft(
    folder: Path, *words: str, limit_bytes: int | None = None, said: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command in a child process with `said` on its stdin; `limit_bytes` limits the files it may write."""
    program = [sys.executable, "-c", "import sys; from shadowft_core.cli import main; sys.exit(main())", *words]
    if limit_bytes is not None:
        program = ["prlimit", f"--fsize={limit_bytes}", *program]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    if limit_bytes is not None:
        environment.pop("COVERAGE_PROCESS_CONFIG", None)  # coverage could not write its data file either
    return subprocess.run(program, cwd=folder, env=environment, input=said, capture_output=True, text=True, check=False)


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in errors[0]


def edit(folder: Path, section: str, **values: object) -> None:
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params.setdefault(section, {}).update(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


PREPARE = ("prepare", "--tasks", "tasks", "--out", "out", "--data")


def test_a_missing_data_file_is_refused(folder: Path) -> None:
    assert_one_line(shadowft(folder, *PREPARE, "absent.jsonl"), 3, "absent.jsonl")
    assert not (folder / "out").exists()


def test_an_empty_data_file_is_refused(folder: Path) -> None:
    (folder / "empty.jsonl").touch()
    assert_one_line(shadowft(folder, *PREPARE, "empty.jsonl"), 3, "empty.jsonl")
    assert not (folder / "out").exists()


def test_rows_that_are_not_conversations_are_refused(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "assistant", "content": "who asked?"}]}\n' * 5)
    assert_one_line(shadowft(folder, *PREPARE, "rows.jsonl"), 3, "rows.jsonl", "41")
    assert not (folder / "out").exists()


def test_good_rows_are_prepared(folder: Path) -> None:
    done = shadowft(folder, *PREPARE, "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "train.parquet").is_file()


def test_other_data_is_prepared_without_the_rows_to_replay(folder: Path) -> None:
    edit(folder, "prepare", replay={"data": "absent.jsonl", "digest": f"sha256:{'0' * 64}", "share": 0.5})
    done = shadowft(folder, *PREPARE, "rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert "rows of --data are prepared without those of prepare.replay" in done.stderr
    assert not (folder / "out/replay.parquet").exists()
    assert_one_line(shadowft(folder, "prepare", "--tasks", "tasks", "--out", "out"), 3, "absent.jsonl: no such file")


def test_an_unknown_field_of_params_is_refused(folder: Path) -> None:
    edit(folder, "train", learning_rte=0.1)
    assert_one_line(shadowft(folder, *PREPARE, "rows.jsonl"), 3, "params.yaml", "train.learning_rte")


def test_a_missing_params_file_is_refused(folder: Path) -> None:
    done = shadowft(folder, *PREPARE, "rows.jsonl", "--params", "absent.yaml")
    assert_one_line(done, 3, "absent.yaml", "no such file", "--params")
    assert not (folder / "out").exists()


def test_a_base_and_an_instruct_of_different_models_are_refused(folder: Path, family_pair: object) -> None:
    llama, qwen = family_pair("llama"), family_pair("qwen3")  # type: ignore[operator]
    assert isinstance(llama, Pair)
    edit(folder, "fetch", base=str(llama.base), instruct=str(qwen.instruct))
    assert_one_line(shadowft(folder, "fetch", "--out", "pair"), 4, "may not be paired", "model_type")
    assert not (folder / "pair").exists()


def test_a_swapped_pair_is_refused(folder: Path, family_pair: object) -> None:
    pair = family_pair("llama")  # type: ignore[operator]
    edit(folder, "fetch", base=str(pair.instruct), instruct=str(pair.base))
    assert_one_line(shadowft(folder, "fetch", "--out", "pair"), 4, "swapped")
    assert not (folder / "pair").exists()


def test_an_s3_endpoint_that_does_not_answer_is_named_in_one_line(folder: Path) -> None:
    endpoint = f"http://127.0.0.1:{closed_port()}"
    done = shadowft(folder, "store", "probe", "--store", "s3://bucket/deltas", "--endpoint", endpoint)
    assert_one_line(done, 8, endpoint)


def test_a_registry_that_does_not_answer_is_named_in_one_line(folder: Path) -> None:
    uri = f"http://127.0.0.1:{closed_port()}"
    edit(folder, "registry", tracking_uri=uri)
    assert_one_line(shadowft(folder, "promote", "shadowft-pico", "challenger"), 9, uri)


def test_a_full_disk_leaves_nothing_half_written(folder: Path, family_pair: object) -> None:
    """A limit on file size acts as a full disk: the write fails in the middle of the weights."""
    pair = family_pair("llama")  # type: ignore[operator]
    words = ("extract", "--base", str(pair.base), "--tuned", str(pair.instruct), "--out", "delta")
    assert_one_line(shadowft(folder, *words, limit_bytes=20_000), 1, "File too large")
    assert sorted(path.name for path in folder.iterdir()) == ["params.yaml", "rows.jsonl", "tasks"]
    assert shadowft(folder, *words).returncode == 0


def test_a_library_that_reads_stdin_gets_an_end_of_file(folder: Path) -> None:
    """Else one that asks a question, or a child process, would wait for the user or take a script's input."""
    program = "import sys; from shadowft_core.cli import main\ntry: main()\nfinally: print(repr(sys.stdin.read()))"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        cwd=folder,
        input="yes\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "''"


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_leaves_nothing_half_written(folder: Path, request: pytest.FixtureRequest, as_json: bool) -> None:
    """Interrupted while it waits for a server that never answers."""
    silent = socket.create_server(("127.0.0.1", 0))
    request.addfinalizer(silent.close)
    endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
    words = ["store", "fetch", f"sha256:{'0' * 64}", "--out", "out", "--store", "s3://bucket", "--endpoint", endpoint]
    words += ["--json"] if as_json else []
    program = [sys.executable, "-c", "import sys; from shadowft_core.cli import main; print('up', flush=True); main()"]
    run = subprocess.Popen(
        [*program, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout
    run.stdout.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(timeout=3)  # it waits for the server
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert run.returncode == 130
    message = "interrupted; no partial output is left, run the same command again"
    envelope = {"format": 1, "kind": "error", "error": "KeyboardInterrupt", "message": message, "exit_code": 130}
    (line,) = errors.splitlines()
    assert json.loads(line) == envelope if as_json else line == f"error: {message}"
    assert not (folder / "out").exists()
