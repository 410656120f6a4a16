"""Damaged files that processes leave for each other: checkpoints, reports of a training's processes, journals."""

import json
from collections.abc import Callable
from pathlib import Path

from shadowft_core.errors import TrainError
from shadowft_core.evaluate.answersfile import AnswersFile, _line
from shadowft_core.files import bytes_digest, file_digest
from shadowft_core.files.record import check_record
from shadowft_core.params import Checkpoint
from shadowft_core.train.checkpoints import MANIFEST, RUN, Checkpoints
from shadowft_core.train.launch import _failure
from shadowft_core.train.steps import RunFile
from tests.fuzz.damage import bytes_damage, json_damage, lines_damage, whole_damage
from tests.fuzz.harness import Target, fuzzed, require_plain

KEY = "sha256:" + "a" * 64
HEAD = _line({"format": 1, "about": {"task": "say"}})


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder, folder / "saving", KEY, Checkpoint(folder="unused", keep=2))


def make_checkpoint(folder: Path) -> None:
    partial = folder / "saving/checkpoint-7"
    (partial / "inner").mkdir(parents=True)
    (partial / "inner/state").write_text("state")
    line = {"step": 7, "epoch": 1.0, "loss": 0.5, "grad_norm": 1.0, "learning_rate": 1e-4, "tokens": 70}
    validation = {"best_loss": 0.5, "best_step": 3, "worse": 0, "stopped_early": False}
    found = checkpoints(folder)
    found.complete(7, {"lines": [line], "tokens": 70, "validation": validation, "over": False})
    found.go_on_with({"batch_size": 2, "accumulation": 4})


def read_checkpoint(folder: Path) -> None:
    found = checkpoints(folder)
    _ = found.smaller
    if saved := found.newest():
        check_record(saved.run, RunFile, RUN, "remove the checkpoint", error=TrainError)


def seal_checkpoint(folder: Path) -> None:
    """The manifest names the digests of the damaged files."""
    place = folder / "checkpoint-7"
    try:
        fields = json.loads((place / MANIFEST).read_bytes())
        for name in fields["files"]:
            fields["files"][name] = [(place / name).stat().st_size, file_digest(place / name)]
        (place / MANIFEST).write_text(json.dumps(fields))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return


def make_reports(folder: Path) -> None:
    for rank, error in enumerate(("TrainError", None)):
        report = {"time": 1.5 + rank, "error": error, "exit_code": 6, "message": "step 3: loss is nan"}
        (folder / f"{rank}.json").write_text(json.dumps(report))
    (folder / "ended.json").write_text("[[1,-9],[0,6],[2,1]]")
    log = folder / "logs/run/attempt_0/0/stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\nRuntimeError: two\n\n")


def make_log(folder: Path) -> None:
    make_reports(folder)
    for name in ("0", "1", "ended"):
        (folder / f"{name}.json").unlink()


def read_reports(folder: Path) -> None:
    error = _failure(folder, 1)
    assert error.exit_code
    require_plain(str(error))


def make_journal(folder: Path) -> None:
    answers = ({"0": {"text": "a", "finish": "stop", "tokens": 3}}, {"1": {"text": "b"}}, {"2": [-1.5, True], "3": 0.5})
    (folder / "batches.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    (folder / "answers.jsonl").write_bytes(HEAD + b"".join(map(_line, answers)))


def resumed(sealed: bool) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        """Lines with the right digest are damaged in what they say; a reader cuts its file back to its good part."""
        place = folder.parent / "out/answers.jsonl"
        file = folder / ("batches.jsonl" if sealed else "answers.jsonl")
        if not file.is_file() or file.stat().st_size > 1 << 20:  # the journal has a file of its own
            return
        raw = file.read_bytes()
        if sealed:
            raw = HEAD + b"".join(_sealed(line) for line in raw.split(b"\n"))
        place.parent.mkdir()
        place.write_bytes(raw)
        with place.open("r+b") as kept:
            found = AnswersFile()
            found.resume(place, kept.fileno(), HEAD)
            assert all(0 <= at < 10**9 for at in found.answers)

    return read


def _sealed(line: bytes) -> bytes:
    return bytes_digest(line).encode() + b" " + line + b"\n"


test_hostile_files_of_processes = fuzzed(
    Target(
        "checkpoint",
        make_checkpoint,
        read_checkpoint,
        {"*/checkpoint.json": json_damage, "*/run.json": json_damage, "smaller.json": json_damage}
        | {"*/inner/state": whole_damage},
        seal=seal_checkpoint,
    ),
    Target("reports of processes", make_reports, read_reports, {"*.json": json_damage}, share=0.5),
    Target("log of processes", make_log, read_reports, {"logs/*/*/*/*.log": bytes_damage}, share=0.25),
    Target("journal", make_journal, resumed(False), {"answers.jsonl": bytes_damage}, share=0.5),
    Target("answers of a journal", make_journal, resumed(True), {"batches.jsonl": lines_damage}, share=0.5),
)
