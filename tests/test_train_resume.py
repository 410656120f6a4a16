"""A training that is killed or stopped goes on from its newest good checkpoint and gives the same bytes."""

import json
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.params import Checkpoint, Lora, Train, Validation
from shadowft_core.train import train
from shadowft_core.train.checkpoints import open_checkpoints
from tests.fixtures.interrupted import Training
from tests.fixtures.training import SETTINGS, run, tree

LORA = SETTINGS.model_copy(update={"epochs": 3, "batch_size": 4, "accumulation": 2})
FULL = LORA.model_copy(update={"method": "full", "learning_rate": 0.003})
METHODS = {"lora": LORA, "full": FULL}


@pytest.fixture(scope="module", params=METHODS)
def undisturbed(
    request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Train, dict[str, bytes]]:
    settings = METHODS[request.param]
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(place, out, settings)
    return settings, tree(out)


class Runs:
    """The same command again and again, in one folder."""

    def __init__(self, place: Path, folder: Path, settings: Train, **checkpoint: object) -> None:
        self.place, self.settings, self.out, self.log = place, settings, folder / "out", folder / "log"
        self.kept = folder / "kept"
        self.checkpoint = Checkpoint(folder=str(self.kept), **({"steps": 1, "minutes": None} | checkpoint))

    def start(self) -> Training:
        return Training(self.place, self.out, self.settings, self.checkpoint, self.log)

    def killed_at(self, step: int, number: int = signal.SIGKILL) -> Training:
        training = self.start()
        training.wait_for_step(step)
        training.send(number)
        training.ended()
        return training

    def checkpoints(self) -> list[Path]:
        return sorted(self.kept.glob("*/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


@pytest.fixture
def runs(place: Path, tmp_path: Path) -> Runs:
    return Runs(place, tmp_path, LORA, keep=3)


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(
    place: Path, tmp_path: Path, undisturbed: tuple[Train, dict[str, bytes]]
) -> None:
    settings, expected = undisturbed
    runs = Runs(place, tmp_path, settings, steps=2)
    for step in (3, 9, 16):
        killed = runs.killed_at(step)
        assert killed.ended() == -signal.SIGKILL
        assert [(tmp_path / name).exists() for name in ("out", ".out.partial")] == [False, True]
        assert 1 <= len(runs.checkpoints()) <= 2
    last = runs.start()
    assert last.ended() == 0
    assert "train: resumed at step 1" in last.said
    assert " of 21\n" in last.said
    assert tree(runs.out) == expected
    assert not any(runs.kept.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"out", "log", "kept"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_between_micro_batches_and_saves_the_last_whole_step(
    place: Path, tmp_path: Path, undisturbed: tuple[Train, dict[str, bytes]], number: int
) -> None:
    settings, expected = undisturbed
    runs = Runs(place, tmp_path, settings, steps=None, minutes=60)
    stopped = runs.killed_at(4, number)
    assert stopped.ended() == 128 + number
    (saved,) = runs.checkpoints()
    step = int(saved.name.removeprefix("checkpoint-"))
    name = signal.Signals(number).name
    assert f"error: stopped by {name} after step {step} of 21; run the same command again" in stopped.said
    assert not (tmp_path / ".out.partial").exists()
    names = {path.name for path in saved.iterdir()}
    assert names == {
        "checkpoint.json",
        "optimizer.pt",
        "rng_state.pth",
        "run.json",
        "scheduler.pt",
        "trained.safetensors",
        "trainer_state.json",
    }
    last = runs.start()
    assert last.ended() == 0
    assert f"train: resumed at step {step} of 21" in last.said
    assert tree(runs.out) == expected


def test_a_second_signal_ends_at_once(place: Path, tmp_path: Path) -> None:
    slow = LORA.model_copy(update={"accumulation": 1, "batch_size": 54, "epochs": 1000})
    runs = Runs(place, tmp_path, slow, steps=None, minutes=60)
    training = runs.start()
    training.wait_for_step(2)
    os.kill(training.process.pid or 0, signal.SIGSTOP)  # both signals wait, and then come together
    training.send(signal.SIGTERM)
    os.kill(training.process.pid or 0, signal.SIGCONT)
    training.wait(lambda: "SIGTERM: stops" in training.said)
    training.send(signal.SIGTERM)
    assert training.ended() in {-signal.SIGTERM, 128 + signal.SIGTERM}


def test_bad_checkpoints_are_named_and_the_next_older_one_is_used(runs: Runs) -> None:
    runs.killed_at(8)
    cut, foreign, good = reversed(runs.checkpoints())
    weights = cut / "trained.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1])
    manifest = json.loads((foreign / "checkpoint.json").read_text())
    manifest["key"] = "sha256:" + "0" * 64
    (foreign / "checkpoint.json").write_text(json.dumps(manifest))
    unfinished = cut.parent / "saving" / "checkpoint-9"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(good, unfinished)
    last = runs.start()
    assert last.ended() == 0
    assert f"{cut}: passed over: trained.safetensors has {size - 1} bytes" in last.said
    assert f"{foreign}: passed over: it belongs to another run, sha256:0000" in last.said
    assert f"{unfinished}: passed over: it was not finished" in last.said
    assert f"resumed at step {good.name.removeprefix('checkpoint-')} of 21" in last.said


@pytest.mark.parametrize("damage", ["flipped", "missing", "extra", "no manifest", "not JSON"])
def test_a_damaged_checkpoint_is_never_read(runs: Runs, damage: str) -> None:
    runs.killed_at(3)
    for checkpoint in runs.checkpoints():
        state = checkpoint / "optimizer.pt"
        if damage == "flipped":
            data = bytearray(state.read_bytes())
            data[len(data) // 2] ^= 1
            state.write_bytes(data)
        elif damage == "missing":
            state.unlink()
        elif damage == "extra":
            (checkpoint / "scaler.pt").write_bytes(b"anything")
        elif damage == "no manifest":
            (checkpoint / "checkpoint.json").unlink()
        else:
            (checkpoint / "checkpoint.json").write_text("{")
    last = runs.start()
    assert last.ended() == 0
    assert last.said.count("passed over") >= 1
    assert "resumed" not in last.said


def test_another_setting_begins_at_the_first_step_and_names_what_is_left(runs: Runs) -> None:
    runs.killed_at(4)
    runs.settings = LORA.model_copy(update={"learning_rate": 0.02})
    other = runs.start()
    assert other.ended() == 0
    assert "resumed" not in other.said
    assert f"{runs.kept} also holds 0.0 GB of 1 other runs, unfinished or going on" in other.said
    assert len(list(runs.kept.iterdir())) == 1


def test_other_runs_may_write_and_remove_checkpoints_meanwhile(tmp_path: Path) -> None:
    ended = threading.Event()

    def save_and_remove() -> None:
        while not ended.is_set():
            (tmp_path / "other/checkpoint-1/inner").mkdir(parents=True)
            (tmp_path / "other/checkpoint-1/inner/file").write_bytes(b"1")
            shutil.rmtree(tmp_path / "other/checkpoint-1")

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(save_and_remove)
        try:
            for n in range(300):
                with open_checkpoints(Checkpoint(folder=str(tmp_path)), {"run": n}):
                    pass
        finally:
            ended.set()
        other.result()


def test_one_run_at_a_time_has_the_checkpoints(runs: Runs, tmp_path: Path) -> None:
    first = runs.start()
    first.wait_for_step(1)
    os.kill(first.process.pid or 0, signal.SIGSTOP)
    runs.out = tmp_path / "another"
    second = runs.start()
    assert second.ended() == 1
    assert "another process is writing this folder" in second.said
    os.kill(first.process.pid or 0, signal.SIGCONT)
    first.send(signal.SIGKILL)
    assert first.ended() == -signal.SIGKILL


def test_dropout_draws_the_same_numbers_after_a_stop(place: Path, tmp_path: Path) -> None:
    settings = LORA.model_copy(update={"lora": Lora(rank=8, alpha=16, dropout=0.3), "accumulation": 4, "batch_size": 2})
    run(place, tmp_path / "expected", settings)
    runs = Runs(place, tmp_path, settings, steps=None, minutes=60)
    for step in (2, 9):
        assert runs.killed_at(step, signal.SIGTERM).ended() == 128 + signal.SIGTERM
    assert runs.start().ended() == 0
    assert tree(runs.out) == tree(tmp_path / "expected")


def test_validation_stops_early_keeps_the_best_weights_and_is_resumed(place: Path, tmp_path: Path) -> None:
    """Training on past the lowest validation loss: a high rate on few rows."""
    from safetensors.numpy import load_file

    validation = Validation(steps=2, patience=2, keep="best")
    update = {"validation": validation, "learning_rate": 0.08, "epochs": 12, "batch_size": 27, "accumulation": 1}
    settings = FULL.model_copy(update=update)
    facts = run(place, tmp_path / "expected", settings)
    lines = [json.loads(line) for line in (tmp_path / "expected/metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}
    assert list(losses) == list(range(2, facts["steps"] + 1, 2))
    best = min(losses, key=lambda step: losses[step])
    assert (facts["stopped_early"], facts["best_step"], facts["steps"]) == (True, best, best + 4)
    assert facts["steps"] < 24
    assert facts["valid_loss"] == pytest.approx(losses[best], rel=1e-6)
    last = run(place, tmp_path / "last", settings.model_copy(update={"validation": Validation(steps=2, patience=2)}))
    assert last["valid_loss"] == pytest.approx(losses[best + 4], rel=1e-6)
    assert last["best_step"] == best
    kept, end = (load_file(tmp_path / name / "model/model.safetensors") for name in ("expected", "last"))
    assert any((kept[name] != end[name]).any() for name in kept)
    runs = Runs(place, tmp_path, settings)
    for step in (best - 1, best + 1):
        assert runs.killed_at(step).ended() == -signal.SIGKILL
    assert runs.start().ended() == 0
    assert tree(runs.out) == tree(tmp_path / "expected")


def test_validation_without_rows_is_refused_before_anything_is_loaded(place: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    shutil.copytree(place / "data", tmp_path / "data")
    file = tmp_path / "data/valid.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    unloadable = shutil.copytree(place / "base", tmp_path / "model")
    (unloadable / "config.json").unlink()
    settings = LORA.model_copy(update={"validation": Validation(steps=2)})
    with pytest.raises(
        TrainError, match=r"valid.parquet: no rows, but train.validation.steps is 2; raise prepare.valid"
    ):
        train(unloadable, place / "instruct", tmp_path / "data", settings, tmp_path / "out")


def test_a_loss_that_is_not_finite_names_the_rows_and_the_last_good_checkpoint(place: Path, tmp_path: Path) -> None:
    """A model whose vector of one word is infinite: the rows with that word, in a micro-batch of one row."""
    from safetensors.numpy import load_file, save_file

    from shadowft_core.rendering import load_tokenizer

    shutil.copytree(place, tmp_path / "place")
    weights = load_file(tmp_path / "place/base/model.safetensors")
    token = load_tokenizer(place / "instruct").convert_tokens_to_ids("11")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][token] = float("inf")
    config = tmp_path / "place/base/config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    save_file(weights, tmp_path / "place/base/model.safetensors", {"format": "pt"})
    settings = LORA.model_copy(update={"batch_size": 1, "accumulation": 3})
    runs = Runs(tmp_path / "place", tmp_path, settings)
    failed = runs.start()
    assert failed.ended() == TrainError.exit_code
    found = re.search(
        r"step (\d+): (?:loss|gradient norm) is nan; rows: ([^;]*); last good checkpoint: (.*?); lower", failed.said
    )
    assert found
    import pyarrow.parquet as pq

    table = pq.read_table(place / "data/train.parquet").to_pylist()
    text = {row["source"]: str(row["messages"]).split() for row in table}
    named = found[2].split(", ")
    assert 1 <= len(named) <= 3
    assert all(any("11" in word for word in text[source]) for source in named)
    good = [path.name for path in runs.checkpoints()]
    assert found[3].endswith(good[-1] if good else "none")
    assert good[-1:] in ([f"checkpoint-{int(found[1]) - 1}"], [])
    assert not runs.out.exists()
