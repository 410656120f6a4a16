"""What a run reads and what its checkpoints depend on: the rows of each file, replay, and a run that was over."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.params import Checkpoint, Prepare, Render, Train, Validation
from shadowft_core.prepare import prepare
from shadowft_core.rendering import load_renderer
from shadowft_core.train import train
from shadowft_core.train.encode import encode_file
from shadowft_core.train.rows import encoded_rows
from tests.fixtures.training import SETTINGS, run, tree


class Stopped(Exception):
    """Raised where a test ends a training."""


def with_replay(place: Path, folder: Path) -> Path:
    """The data of `place`, whose validation rows are replayed too."""
    data = Path(shutil.copytree(place / "data", folder / "data"))
    shutil.copy(data / "valid.parquet", data / "replay.parquet")
    return data


@pytest.mark.parametrize("images", [False, True])
def test_each_file_is_encoded_for_its_purpose(place: Path, tmp_path: Path, images: bool) -> None:
    """Ids, labels, sources and, for images, texts and files of a sequence stay together when replay rows are added."""
    data, renderer = with_replay(place, tmp_path), load_renderer(place / "instruct", Render())
    alone = {
        name: encode_file(data / f"{name}.parquet", renderer, SETTINGS.max_length, images)
        for name in ("train", "valid")
    }
    rows, valid, counts = encoded_rows(data, renderer, SETTINGS, True, images)
    assert valid.digest() == alone["valid"].digest() != alone["train"].digest()
    assert counts == {"train": alone["train"].counts(), "valid": valid.counts(), "replay": valid.counts()}
    for field in ("input_ids", "labels", "origins", "texts", "files", "rejected"):
        found, expected = getattr(rows, field), getattr(alone["train"], field) + getattr(alone["valid"], field)
        assert [list(value) for value in found] == [list(value) for value in expected], field
    assert (len(rows.texts) > 0) == images
    assert [source.split(":")[0] for [source] in rows.origins] == ["rows.jsonl"] * len(rows.input_ids)
    without, _, counts = encoded_rows(data, renderer, SETTINGS, False, images)
    assert (without.digest(), "replay" in counts) == (alone["train"].digest(), False)


def test_preferences_are_replayed_with_their_rejected_replies(place: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{a} plus 1", "chosen": f"is {a + 1}", "rejected": f"be {a}"} for a in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(tmp_path / "rows.jsonl", None, Prepare(data="-", valid=0.3), tmp_path / "data")
    shutil.copy(tmp_path / "data/valid.parquet", tmp_path / "data/replay.parquet")
    renderer = load_renderer(place / "instruct", Render())
    settings = SETTINGS.model_copy(update={"objective": "dpo"})
    found, valid, _ = encoded_rows(tmp_path / "data", renderer, settings, True, False)
    assert 0 < len(valid.rejected) < len(found.rejected) == len(found.input_ids) == 9


def test_the_checkpoints_of_a_run_depend_on_all_that_its_result_depends_on(place: Path, tmp_path: Path) -> None:
    data = with_replay(place, tmp_path)

    def identity(settings: Train = SETTINGS, model: str = "base", **given: Any) -> str:
        found: list[str] = []

        @contextmanager
        def follow(identity: Any) -> Iterator[Any]:
            found.append(json.dumps(identity, sort_keys=True))
            raise Stopped
            yield

        places = place / model, place / "instruct", data, settings, tmp_path / "out"
        with pytest.raises(Stopped):
            train(*places, follow=follow, **given)
        return found[0]

    plain = identity()
    assert plain == identity(checkpoint=Checkpoint(folder=str(tmp_path / "kept"), keep=7))
    assert json.loads(plain)["devices"] == ["cpu"]
    others = {
        "replay": identity(replay=False),  # neither settings nor the digest of the data have it
        "model": identity(model="instruct"),
        "settings": identity(SETTINGS.model_copy(update={"seed": 1})),
        "render": identity(render=Render(system="fold")),
    }
    assert len({plain, *others.values()}) == 1 + len(others)


def test_a_run_that_stopped_early_takes_no_further_step_when_it_goes_on(place: Path, tmp_path: Path) -> None:
    """It ends after its last checkpoint, before the result is written."""
    settings = SETTINGS.model_copy(
        update={"method": "full", "learning_rate": 0.08, "epochs": 20, "batch_size": 27}
        | {"validation": Validation(steps=1, patience=1, keep="best")}
    )
    facts = run(place, tmp_path / "expected", settings)
    assert (facts["stopped_early"], facts["steps"] < 40) == (True, True)

    @contextmanager
    def follow(_: Any) -> Iterator[Any]:
        def on_line(line: Any) -> None:
            if "seconds" not in line:  # the validation loss after training
                raise Stopped

        yield on_line

    given = place / "base", place / "instruct", place / "data", settings, tmp_path / "out"
    checkpoint = Checkpoint(steps=1, minutes=None, folder=str(tmp_path / "kept"))
    with pytest.raises(Stopped):
        train(*given, checkpoint=checkpoint, follow=follow)
    [newest] = (tmp_path / "kept").glob(f"*/checkpoint-{facts['steps']}")
    assert json.loads((newest / "run.json").read_text())["over"] is True
    train(*given, checkpoint=checkpoint)
    assert tree(tmp_path / "out") == tree(tmp_path / "expected")
