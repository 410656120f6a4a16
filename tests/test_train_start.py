"""A training that starts from the champion: bits of the start, what is refused, and what is extracted afterwards."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import ParamsError, TrainError
from shadowft_core.params import Lora, Train
from shadowft_core.train import train
from tests.fixtures.training import SETTINGS, run, tree

ONE = SETTINGS.model_copy(update={"max_steps": 1, "learning_rate": 1e-9})  # moves no weight visibly
SOME = SETTINGS.model_copy(update={"max_steps": 6})
AGAIN = ONE.model_copy(update={"start": "champion"})
FULL = {"method": "full"}


def write_start(folder: Path, delta: Path) -> Path:
    """The folder that the stage start writes, for a delta that was never published."""
    folder.mkdir()
    (folder / "delta").symlink_to(delta)
    facts = {"format": 1, "start": "champion", "name": "weekly", "version": 3, "delta": open_delta(delta).digest}
    (folder / "start.json").write_text(json.dumps(facts))
    return folder


@dataclass
class Champions:
    """Deltas of earlier trainings of the Base in `place`, as start folders."""

    place: Path
    lora: Path
    full: Path

    def delta(self, name: str) -> Any:
        return open_delta(getattr(self, name) / "delta")

    def go_on(self, out: Path, name: str, model: str = "base", **changes: Any) -> Any:
        """Train from this champion and extract; returns train.json and the delta."""
        settings = AGAIN.model_copy(update=changes)
        given = self.place / model, self.place / "instruct", self.place / "data", settings, out / "tuned"
        train(*given, start=getattr(self, name))
        extract(self.place / model, out / "tuned", out / "delta")
        return json.loads((out / "tuned/train.json").read_text()), open_delta(out / "delta")


@pytest.fixture(scope="module")
def champions(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Champions:
    made = tmp_path_factory.mktemp("champions")
    for name, settings in (("lora", SOME), ("full", SOME.model_copy(update=FULL))):
        run(place, made / f"tuned-{name}", settings)
        extract(place / "base", made / f"tuned-{name}", made / f"delta-{name}")
        write_start(made / name, made / f"delta-{name}")
    return Champions(place, made / "lora", made / "full")


def near(found: Any, expected: Any) -> float:
    """The largest difference between two deltas, over all tensors."""
    assert set(found.names) == set(expected.names)
    return max(float(np.abs(found.read(name) - expected.read(name)).max()) for name in expected.names)


def test_a_lora_goes_on_from_the_factors_of_the_champion(champions: Champions, tmp_path: Path) -> None:
    """A step with almost no learning rate leaves the champion's delta; A and B are its factors, not a new product."""
    before = champions.delta("lora")
    facts, after = champions.go_on(tmp_path, "lora")
    assert facts["start"] == {"start": "champion", "name": "weekly", "version": 3, "delta": before.digest}
    assert after.kind == "lora"
    assert near(after, before) < 1e-6
    for name in before.names:
        then, now = before.factors(name), after.factors(name)
        assert np.allclose(then.right(), now.right(), atol=1e-6)
        assert np.abs(then.left()).max() > 1e-3, "the champion was trained"
    scratch = run(champions.place, tmp_path / "scratch", ONE)
    assert scratch["start"] == {"start": "scratch"}
    assert facts["first_loss"] < scratch["first_loss"] - 0.1


def test_a_lora_started_from_the_champion_differs_only_by_its_training(champions: Champions, tmp_path: Path) -> None:
    """The loss of the first step is that of the champion's last weights, on the same batch."""
    facts, after = champions.go_on(tmp_path / "a", "lora", learning_rate=0.01, max_steps=6)
    assert near(after, champions.delta("lora")) > 1e-3
    again, _ = champions.go_on(tmp_path / "b", "lora", learning_rate=0.01, max_steps=6)
    assert again == facts
    assert tree(tmp_path / "a/tuned") == tree(tmp_path / "b/tuned")


@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_full_training_starts_from_the_weights_plus_the_delta(
    champions: Champions, tmp_path: Path, name: str
) -> None:
    before = champions.delta(name)
    facts, after = champions.go_on(tmp_path, name, **FULL)
    touched = {tensor: after.read(tensor) for tensor in after.names}
    for tensor in before.names:
        assert np.abs(touched[tensor] - before.read(tensor)).max() < 1e-5, tensor
    assert facts["model_digest"] == run(champions.place, tmp_path / "scratch", ONE)["model_digest"]


def test_both_routes_start_from_the_same_delta(champions: Champions, tmp_path: Path) -> None:
    """The Instruct plus the delta of the Base; what is extracted is against the untouched Instruct."""
    facts, after = champions.go_on(tmp_path, "lora", model="instruct")
    assert near(after, champions.delta("lora")) < 1e-6
    assert facts["start"]["delta"] == champions.delta("lora").digest


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        (
            "lora",
            {"lora": Lora(rank=4, alpha=16)},
            r"the rank is 4, that of the champion 8; set train\.lora to the rank",
        ),
        ("lora", {"lora": Lora(rank=8, alpha=8)}, r"the scale of B A, alpha/rank, is 1, that of the champion 2; set"),
        ("lora", {"lora": Lora(rank=8, alpha=16, rslora=True)}, r"the scale .* is 5\.65685, that of the champion 2"),
        (
            "lora",
            {"lora": Lora(rank=8, alpha=16, targets=("q_proj", "v_proj"))},
            r"only the champion adapts model\.layers\.0\.mlp\.down_proj\.weight; the champion adapts 14 layers, this "
            r"training 4; set train\.lora\.targets",
        ),
        ("lora", {"lora": Lora(rank=8, alpha=16, dora=True)}, r"no start for train\.lora\.dora; set it to false"),
        (
            "full",
            {},
            r"the champion's delta is dense, but train\.method lora starts from the factors of a LoRA; set "
            r"train\.method to full",
        ),
    ],
)
def test_a_champion_that_is_no_start_is_refused_with_the_remedy(
    champions: Champions, tmp_path: Path, name: str, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(TrainError, match=problem) as refused:
        champions.go_on(tmp_path, name, **changes)
    assert "set train.start to scratch" in str(refused.value)
    assert not (tmp_path / "tuned").exists()


def test_a_delta_of_another_shape_is_refused(champions: Champions, tmp_path: Path) -> None:
    from tests.fixtures.training import write_model

    wide = write_model(tmp_path / "wide", 1, vocabulary=64)
    settings = AGAIN.model_copy(update=FULL)
    with pytest.raises(
        TrainError, match=r"embed_tokens\.weight is \(64, 32\), the champion's delta has it as \(25, 32\)"
    ):
        train(wide, wide, champions.place / "data", settings, tmp_path / "out", start=champions.full)


def test_the_start_folder_must_be_given_and_fit(champions: Champions, tmp_path: Path) -> None:
    def begin(start: Path | None, settings: Train = AGAIN) -> Any:
        place = champions.place
        train(place / "base", place / "instruct", place / "data", settings, tmp_path / "out", start=start)
        return json.loads((tmp_path / "out/train.json").read_text())["start"]

    with pytest.raises(ParamsError, match=r"train\.start is champion, but no start was given; pass --start"):
        begin(None)
    scratch = tmp_path / "start"
    scratch.mkdir()
    (scratch / "start.json").write_text('{"format": 1, "start": "scratch"}')
    with pytest.raises(ParamsError, match=r"start is scratch, train\.start is champion; run `shadowft start` again"):
        begin(scratch)
    (scratch / "start.json").write_text('{"format": 1, "start": "scratch", "reason": "weekly has no champion"}')
    assert begin(scratch) == {"start": "scratch", "reason": "weekly has no champion"}
    assert begin(champions.lora, ONE) == {"start": "scratch"}, "a start that the settings do not ask for is not used"
    other = tmp_path / "other"
    other.mkdir()
    (other / "delta").symlink_to(champions.full / "delta")
    (other / "start.json").write_text((champions.lora / "start.json").read_text())
    with pytest.raises(TrainError, match=r"start\.json has sha256:"):
        begin(other)
