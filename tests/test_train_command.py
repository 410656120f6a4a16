"""`train.command`: the user's own trainer as the train stage, with real processes and real trainers."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from shadowft_core.delta import extract
from shadowft_core.errors import DataError, DeltaError, ShadowError, TrainError, WrongBaseError, ZeroDeltaError
from shadowft_core.files import file_digest
from shadowft_core.params import Train
from shadowft_core.train import train_by_command
from shadowft_core.train.plainrows import write_plain_rows
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import save_adapter, shifted
from tests.fixtures.processes import none_left
from tests.fixtures.trainers import write_script

pytestmark = pytest.mark.usefixtures("place")


def trained(place: Path, out: Path, command: str, model: str = "base", **settings: Any) -> dict[str, Any]:
    route = {"base": "shadow", "instruct": "direct"}[model]
    params = Train(command=command, **settings)
    train_by_command(
        place / model, place / "instruct", place / "data", params, out, route, out.parent / f"scratch-{route}"
    )
    facts: dict[str, Any] = json.loads((out / "train.json").read_text())
    return facts


@pytest.mark.parametrize(("words", "model", "kind"), [("", "base", "model"), ("--lora", "instruct", "adapter")])
def test_a_script_trains_each_route_and_its_result_is_extracted(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str, model: str, kind: str
) -> None:
    script = write_script(tmp_path)
    facts = trained(place, tmp_path / "out", f"python '{script}' {words}", model, seed=3, epochs=5)
    said = capfd.readouterr().err
    assert "splits ['train', 'validation'] columns ['id', 'messages']" in said
    assert "these settings have no effect: epochs" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {kind, "train.json", "metrics.jsonl"}
    kept = {path.name for path in (tmp_path / "out" / kind).iterdir()}
    assert not {name for name in kept if name.endswith((".bin", ".pt", ".pth")) or name.startswith("checkpoint")}
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert (facts["steps"], facts["first_loss"], facts["last_loss"]) == (2, lines[0]["loss"], lines[1]["loss"])
    assert (facts["seed"], facts["model_digest"]) == (3, open_checkpoint(place / model).digest())
    assert facts["data_digest"] == json.loads((place / "data/data-report.json").read_text())["digest"]
    assert facts["trainer"]["name"] == "transformers"
    assert "whether it used these rows, and how it rendered them" in facts["trainer"]["not_known"]
    found = extract(place / model, tmp_path / "out", tmp_path / "delta")
    assert found["kind"] == ("lora" if kind == "adapter" else "dense")
    assert found["trainer"] == facts["trainer"]
    assert not list(tmp_path.glob("scratch*"))


def test_held_out_rows_are_not_handed_over(place: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_plain_rows(place / "data", tmp_path / "rows")
    assert {path.name for path in (tmp_path / "rows").iterdir()} == {
        "train.parquet", "valid.parquet", "dataset_info.json"
    }  # fmt: skip
    given, ours = (pq.read_table(folder / "train.parquet") for folder in (tmp_path / "rows", place / "data"))
    assert given["id"].to_pylist() == ours["id"].to_pylist()
    for row in given.to_pylist():
        assert [set(message) for message in row["messages"]] == [{"role", "content"}] * 2
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"train\.parquet: no such file"):
        write_plain_rows(tmp_path / "none", tmp_path / "none")


def test_replay_rows_follow_the_rows_of_a_route_that_has_them(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(place / "data/train.parquet")
    pq.write_table(table.slice(0, 4), data / "train.parquet")
    pq.write_table(table.slice(4, 2), data / "replay.parquet")
    for replay, count in ((True, 6), (False, 4)):
        (out := tmp_path / str(replay)).mkdir()
        write_plain_rows(data, out, replay)
        assert pq.read_table(out / "train.parquet")["id"].to_pylist() == table["id"].to_pylist()[:count]


def test_columns_and_images_that_rows_use_are_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data/images", "out"):
        Path(name).mkdir(parents=True)
    Path("data/images/one.png").write_bytes(b"pixels")
    row = {"id": "a", "messages": [{"role": "user", "content": "hi"}], "tools": "[]", "images": ["one.png"]}
    table = pa.Table.from_pylist([{**row, "source": "mine", "rejected": None}])
    pq.write_table(table, "data/train.parquet")
    write_plain_rows(Path("data"), Path("out"))
    assert pq.read_table("out/train.parquet").to_pylist() == [row]
    assert Path("out/images/one.png").read_bytes() == b"pixels"
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    info = {"file_name": "train.parquet", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    assert json.loads(Path("out/dataset_info.json").read_text()) == {"train": info}
    pq.write_table(table.slice(0, 0), "data/train.parquet")
    with pytest.raises(DataError, match="no rows to train on"):
        write_plain_rows(Path("data"), Path("out"))


def copying(folder: Path, source: str) -> str:
    """A command that copies the files of `source` to SHADOWFT_OUT: the result of a training made before."""
    script = folder / "copy.py"
    script.write_text(
        "import os, shutil, sys\n"
        "shutil.copytree(sys.argv[1], os.environ['SHADOWFT_OUT'], dirs_exist_ok=True)\n"
        "print('copied to', sys.argv[2])\n"
    )
    return f"python '{script}' '{source}' $SHADOWFT_OUT"


def failure(place: Path, tmp_path: Path, command: str, error: type[ShadowError]) -> str:
    """The message of a command that is refused; the former result stays."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    (out / "former").touch()
    with pytest.raises(error) as raised:
        trained(place, out, command)
    assert [path.name for path in out.iterdir()] == ["former"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    message = str(raised.value)
    assert len(message) < 1000
    assert "\n" not in message
    return message


def test_a_result_that_extract_would_refuse_is_refused_and_stays_to_be_saved(place: Path, tmp_path: Path) -> None:
    save_adapter(place / "instruct", tmp_path / "adapter")
    message = failure(place, tmp_path, copying(tmp_path, str(tmp_path / "adapter")), WrongBaseError)
    assert "as the starting model, but tensor" in message
    kept = tmp_path / "scratch-shadow/out"
    assert f"its output stays in {kept} until the next run" in message
    assert (kept / "adapter_model.safetensors").is_file()
    failure(place, tmp_path, copying(tmp_path, str(place / "base")), ZeroDeltaError)
    assert not (kept / "adapter_model.safetensors").exists()  # each run gets an empty folder


def test_a_result_that_is_missing_or_not_finished_is_refused(place: Path, tmp_path: Path) -> None:
    assert "expected safetensors, found no weights" in failure(place, tmp_path, "true", ShadowError)
    save_adapter(place / "base", tmp_path / "run/checkpoint-7")
    message = failure(place, tmp_path, copying(tmp_path, str(tmp_path / "run")), DeltaError)
    assert "pass one of its folders: checkpoint-7" in message


def test_a_command_that_fails_is_named_with_its_code_and_last_line(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "import sys\nprint('CUDA is on fire' + 'e' * 2000 + '\\n\\n', file=sys.stderr)\nsys.exit(3)"
    )
    message = failure(place, tmp_path, f"python '{tmp_path / 'bad.py'}'", TrainError)
    assert f"ended with exit code 3; its last line: CUDA is on fire{'e' * 285}; its output stays in" in message
    (tmp_path / "kill.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    message = failure(place, tmp_path, f"python '{tmp_path / 'kill.py'}'", TrainError)
    assert "was killed by SIGKILL, without a message" in message


def test_words_are_filled_in_and_no_shell_runs(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = failure(place, tmp_path, "echo $SHADOWFT_ROUTE ${SHADOWFT_SEED} '; exit 9' $HOME", ShadowError)
    assert "found no weights" in message
    assert "shadow 0 ; exit 9 $HOME" in capfd.readouterr().err
    message = failure(place, tmp_path, "echo $SHADOWFT_MODELS", TrainError)
    assert "$SHADOWFT_MODELS is not set; there are $SHADOWFT_MODEL, $SHADOWFT_INSTRUCT" in message
    assert "no program my-trainer on the PATH" in failure(place, tmp_path, "my-trainer", TrainError)


def test_what_a_result_is_kept_with_and_recorded_with(
    copied: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter with the files of tokenizers and trainers; its weights are a link within the folder."""
    with (copied / "instruct/tokenizer.json").open("a") as file:
        file.write("\n")  # so both models have files of their own
    made = tmp_path / "made"
    save_adapter(copied / "base", made)
    (made / "adapter_model.safetensors").rename(made / ".blob")
    (made / "adapter_model.safetensors").symlink_to(".blob")
    (made / "README.md").write_text("- seed: 7\n")
    (made / "optimizer.pt").touch()
    (made / "chat_template.jinja").write_text("mine")
    script = tmp_path / "result.py"
    script.write_text(
        "import os, shutil, sys\nimport pyarrow.parquet as pq\n"
        "print('rows', len(pq.read_table(os.environ['SHADOWFT_DATA'] + '/train.parquet')), shutil.which('python'))\n"
        "shutil.copytree(sys.argv[1], os.environ['SHADOWFT_OUT'], symlinks=True, dirs_exist_ok=True)\n"
    )
    train = pq.read_table(copied / "data/train.parquet")
    pq.write_table(train.slice(0, 2), copied / "data/replay.parquet")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    params, out = Train(command=f"python result.py '{made}'", seed=3), tmp_path / "out"
    places = (copied / "base", copied / "instruct", copied / "data")
    train_by_command(*places, params, out, "shadow", tmp_path / "scratch", replay=False)
    said = capfd.readouterr().err
    assert f"rows {train.num_rows} {Path(sys.executable).with_name('python')}" in said
    assert "the files of the command say seed 7, given was 3" in said
    assert "kept adapter/; not kept: .blob, README.md, optimizer.pt\n" in said
    assert {path.name for path in (out / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
    }  # fmt: skip
    assert not (out / "adapter/adapter_model.safetensors").is_symlink()
    facts = json.loads((out / "train.json").read_text())
    assert facts["files"] == {"result.py": file_digest(script)}
    assert facts["tokenizer_digest"] == open_checkpoint(copied / "instruct").tokenizer_digest()
    assert facts["trainer"]["not_known"][:3] == ["steps", "losses", "whether it used the seed"]


def test_a_tensor_to_ignore_is_no_failure_of_the_command(place: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    shifted(place / "base", made, 0.01, seed=2)
    tensors = load_file(made / "model.safetensors")
    save_file(tensors | {"extra.weight": np.ones(4, np.float32)}, made / "model.safetensors")
    command = copying(tmp_path, str(made))
    assert "extra.weight" in failure(place, tmp_path, command, ShadowError)
    places = (place / "base", place / "instruct", place / "data")
    train_by_command(
        *places, Train(command=command), out := tmp_path / "out", "shadow", tmp_path / "s", ignore=["ext*"]
    )
    assert json.loads((out / "train.json").read_text())["method"] == "full"


def test_a_stopped_command_ends_with_all_its_processes(place: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, signal, subprocess, sys, time\n"
        "def save(*_):\n    time.sleep(0.5)\n    pathlib.Path(__file__).with_name('saved').touch()\n    sys.exit()\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('begun')\ntime.sleep(600)\n"
    )
    code = (
        "import sys; from pathlib import Path\n"
        "from shadowft_core.errors import StoppedError\n"
        "from shadowft_core.params import Train\nfrom shadowft_core.train import train_by_command\n"
        f"place, here = Path({str(place)!r}), Path({str(tmp_path)!r})\n"
        "try:\n"
        "    train_by_command(place / 'base', place / 'instruct', place / 'data', "
        "Train(command=f'python {here}/slow.py'), here / 'out', 'shadow', here / 'scratch')\n"
        "except StoppedError as error:\n    print(error, file=sys.stderr)\n    sys.exit(error.exit_code)\n"
    )
    mark = f"command {tmp_path}"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"SHADOWFT_TEST_MARK": mark}, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    late = threading.Timer(60, child.kill)
    late.start()
    assert any("begun" in line for line in child.stderr), "its output comes as it is written"
    late.cancel()
    child.send_signal(signal.SIGTERM)
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, with all its processes" in said
    assert none_left(mark, seconds=10)
    assert (tmp_path / "saved").exists(), "it has time to save its state"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


@pytest.mark.slow
def test_the_script_of_the_page_trains_with_trl(place: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs/training.md").read_text(encoding="utf-8")
    found = re.search(r"\n\n((?:    .*\n|\n)+)", page[page.index("### A command as the train stage") :])
    assert found is not None
    (tmp_path / "my_train.py").write_text("".join(line[4:] or "\n" for line in found[1].splitlines(keepends=True)))
    facts = trained(place, tmp_path / "out", f"python '{tmp_path / 'my_train.py'}'")
    assert (facts["trainer"]["name"], facts["method"], facts["trainer"]["facts"]["epochs"]) == ("TRL", "full", 2)
    assert facts["tokens"] is None  # its last count is of step 10 of 14
    assert extract(place / "base", tmp_path / "out", tmp_path / "delta")["kind"] == "dense"
