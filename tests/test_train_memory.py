"""Out of memory: one retry with smaller micro-batches, then an error. torch's CPU allocator really fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shadowft_core.errors import TrainError
from shadowft_core.params import Checkpoint, Train
from shadowft_core.train import train
from tests.fixtures.training import SETTINGS, run, tree
from tests.test_train_preference import DPO
from tests.test_train_preference import place as pairs

__all__ = ["pairs"]  # a fixture

LORA = SETTINGS.model_copy(update={"epochs": 2, "batch_size": 6, "accumulation": 1})


def too_much(monkeypatch: pytest.MonkeyPatch, above: int, from_step: int = 0) -> None:
    """Ask torch for 2**60 bytes in each micro-batch with more than `above` rows, from a step on."""
    from shadowft_core.train.sources import NamesRows

    real: Any = NamesRows.training_step

    def step(self: Any, model: Any, inputs: dict[str, Any], *given: Any) -> Any:
        if len(inputs["input_ids"]) > above and self.state.global_step >= from_step:
            torch.empty(2**60, dtype=torch.uint8)
        return real(self, model, inputs, *given)

    monkeypatch.setattr(NamesRows, "training_step", step)


def trained(place: Path, out: Path, kept: Path, settings: Train = LORA) -> dict[str, Any]:
    checkpoint = Checkpoint(steps=2, minutes=None, folder=str(kept))
    train(place / "base", place / "instruct", place / "data", settings, out, checkpoint=checkpoint)
    facts: dict[str, Any] = json.loads((out / "train.json").read_text())
    return facts


@pytest.mark.parametrize("from_step", [0, 5])
def test_it_tries_once_more_with_half_the_micro_batch(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], from_step: int
) -> None:
    too_much(monkeypatch, 3, from_step)
    facts = trained(place, tmp_path / "out", tmp_path / "kept")
    assert facts["after_out_of_memory"] == {"batch_size": 3, "accumulation": 2}
    assert (facts["settings"]["batch_size"], facts["rows_per_step"], facts["steps"]) == (6, 6, 18)
    said = capfd.readouterr().err
    assert "out of memory with train.batch_size 6" in said
    assert "trying once more with batch_size 3, accumulation 2" in said
    assert ("resumed at step 4 of 18" in said) == bool(from_step)
    assert not any((tmp_path / "kept").iterdir())
    if not from_step:
        monkeypatch.undo()
        run(place, tmp_path / "small", LORA.model_copy(update={"batch_size": 3, "accumulation": 2}))
        weights = "adapter/adapter_model.safetensors"
        assert tree(tmp_path / "out")[weights] == tree(tmp_path / "small")[weights]


def test_it_tries_once_more_if_the_reference_of_preferences_does_not_fit(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference of the method full is computed before the first step."""
    from shadowft_core.train.preference import PreferenceTrainer

    real: Any = PreferenceTrainer.compute_ref_log_probs

    def reference(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        if len(inputs["input_ids"]) > 2 * 4:  # two sequences a pair
            torch.empty(2**60, dtype=torch.uint8)
        return real(self, model, inputs)

    monkeypatch.setattr(PreferenceTrainer, "compute_ref_log_probs", reference)
    settings = DPO.model_copy(update={"method": "full"})
    facts = trained(pairs, tmp_path / "out", tmp_path / "kept", settings)
    assert facts["after_out_of_memory"] == {"batch_size": 4, "accumulation": 2}


def test_the_second_time_it_is_an_error_with_numbers_and_remedy(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_much(monkeypatch, 0)
    with pytest.raises(TrainError, match=r"batch_size 3 .*1152921504606846976.*gradient_checkpointing") as error:
        trained(place, tmp_path / "out", tmp_path / "kept")
    assert type(error.value) is TrainError
    assert not (tmp_path / "out").exists()


def test_a_micro_batch_of_one_row_is_not_tried_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_much(monkeypatch, 0)
    with pytest.raises(TrainError, match="batch_size 1 "):
        trained(place, tmp_path / "out", tmp_path / "kept", LORA.model_copy(update={"batch_size": 1}))


def test_weights_that_are_not_finite_are_never_saved(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight is damaged between the optimizer's third step and its checkpoint."""
    from shadowft_core.train.saving import Saver, trained

    real: Any = Saver.on_step_end

    def damage(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.global_step == 3:
            with torch.no_grad():
                trained(given["model"])[0][1].view(-1)[0] = float("nan")
        real(self, args, state, control, **given)

    monkeypatch.setattr(Saver, "on_step_end", damage)
    checkpoint = Checkpoint(steps=1, minutes=None, folder=str(tmp_path / "kept"))
    with pytest.raises(TrainError, match="not finite after step 3"):
        train(place / "base", place / "instruct", place / "data", LORA, tmp_path / "out", checkpoint=checkpoint)
    assert {path.name for path in tmp_path.glob("kept/*/checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
