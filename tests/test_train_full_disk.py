"""A disk that fills up while `train` writes. The largest size of a file stands for it: the same calls fail."""

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import TrainError
from shadowft_core.params import Checkpoint, Train
from shadowft_core.train import train
from tests.fixtures.training import SETTINGS, run, tree
from tests.test_train_validation import EARLY

LORA = SETTINGS.model_copy(update={"epochs": 1})
FULL = LORA.model_copy(update={"method": "full", "learning_rate": 0.003})


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("step", [3, 7], ids=["checkpoint", "result"])
@pytest.mark.parametrize("settings", [LORA, FULL], ids=["lora", "full"])
def test_a_full_disk_is_named_and_the_run_goes_on_later(
    place: Path, tmp_path: Path, settings: Train, step: int
) -> None:
    """From step 3 on no checkpoint can be written, or from step 7 of 7 on no result."""
    run(place, tmp_path / "expected", settings)
    limits = contextlib.ExitStack()

    @contextlib.contextmanager
    def follow(_: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, float]], None]]:
        def line(values: Mapping[str, float]) -> None:
            if values["step"] == step and "loss" in values:
                limits.enter_context(files_of_at_most(20_000))

        yield line

    checkpoint = Checkpoint(folder=str(tmp_path / "kept"), steps=2, minutes=None)
    words = place / "base", place / "instruct", place / "data", settings, tmp_path / "out"
    with (
        limits,
        pytest.raises(TrainError, match=r"cannot be written \(.*GB are free there; make room and run the same"),
    ):
        train(*words, checkpoint=checkpoint, follow=follow)
    kept = {path.name for path in tmp_path.glob("kept/*/*")}
    assert kept == {"identity.json", "progress.jsonl", "saving"} | (
        {"checkpoint-2"} if step == 3 else {"checkpoint-4", "checkpoint-6"}
    )
    assert not list(tmp_path.glob("kept/*/saving/*"))
    assert not (tmp_path / "out").exists()
    train(*words, checkpoint=checkpoint)
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")


def test_the_best_weights_are_copied_where_there_are_no_hard_links(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a file system is a mock: os.link fails as it does on one."""
    run(place, tmp_path / "expected", EARLY)

    def link(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    checkpoint = Checkpoint(folder=str(tmp_path / "kept"), steps=1, minutes=None)
    train(place / "base", place / "instruct", place / "data", EARLY, tmp_path / "out", checkpoint=checkpoint)
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")
