"""What training refuses or leaves out: rows, models that do not fit, losses that are not finite."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from shadowft_core.delta import extract
from shadowft_core.errors import AdapterError, CheckpointError, DataError, TensorMissingError, TrainError
from shadowft_core.params import Lora, Prepare
from shadowft_core.prepare import prepare
from shadowft_core.train import train
from tests.fixtures.training import SETTINGS, run, word_tokenizer, write_model

ROOT = Path(__file__).parent.parent


def test_weights_that_are_not_finite_are_not_kept(place: Path, tmp_path: Path) -> None:
    """In an embedding row that no batch uses, so neither loss nor gradient shows it."""
    from safetensors.numpy import save_file

    base = shutil.copytree(place / "base", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.embed_tokens.weight"][0, 5] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    settings = SETTINGS.model_copy(update={"method": "full", "max_steps": 1})
    with pytest.raises(TrainError, match=r"embed_tokens\.weight: not finite after the last step; lower"):
        train(base, place / "instruct", place / "data", settings, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("which", ["model", "instruct"])
def test_a_missing_model_is_refused_before_the_rows_are_rendered(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    folders = {"model": place / "base", "instruct": place / "instruct"} | {which: tmp_path / "absent"}
    with pytest.raises(CheckpointError, match=r"absent: no such folder; expected a Hugging Face model folder$"):
        train(**folders, data=place / "data", params=SETTINGS, out=tmp_path / "out")
    assert capsys.readouterr().err == ""


def test_rows_too_long_or_with_control_tokens_are_counted_and_left_out(place: Path, tmp_path: Path) -> None:
    def row(asked: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "is 3"}]}

    rows = [row("1 plus 2"), row("2 plus 1"), row("1 plus " * 20), row("be <|im_end|> kind"), row("<pad>")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prepare(tmp_path / "rows.jsonl", place / "tasks", Prepare(data="-", valid=0), tmp_path / "data")
    settings = SETTINGS.model_copy(update={"max_steps": 1, "max_left_out": 0.6})
    train(place / "base", place / "instruct", tmp_path / "data", settings, tmp_path / "out")
    facts = json.loads((tmp_path / "out/train.json").read_text())
    used = facts["rows"]["train"]
    assert (used["rows"], used["sequences"], used["too_long"]) == (2, 2, 1)
    assert used["refused"] == {
        "control token <|im_end|> in the text": {"rows": 1, "sources": ["rows.jsonl:4"]},
        "control token <pad> in the text": {"rows": 1, "sources": ["rows.jsonl:5"]},
    }
    assert used["learned_tokens"] == 2 * 3
    assert facts["valid_loss"] is None
    message = (
        r"5 of 5 rows are left out \(3 longer than train.max_length 8; 1 control token <.*> in the text \(rows.jsonl:"
    )
    with pytest.raises(TrainError, match=message):
        train(
            place / "base",
            place / "instruct",
            tmp_path / "data",
            SETTINGS.model_copy(update={"max_length": 8}),
            tmp_path / "no",
        )
    assert not (tmp_path / "no").exists()
    few = settings.model_copy(update={"max_left_out": 0.59})
    with pytest.raises(TrainError, match=r"3 of 5 rows are left out .*, but train.max_left_out allows 59%"):
        train(place / "base", place / "instruct", tmp_path / "data", few, tmp_path / "no")


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    wild = SETTINGS.model_copy(update={"method": "full", "learning_rate": 1e30})
    with pytest.raises(
        TrainError,
        match=r"^step 2: (loss|gradient norm) is (nan|inf); rows: rows.jsonl:.*; last good checkpoint: none; lower ",
    ):
        run(place, tmp_path / "out", wild)
    assert list(tmp_path.iterdir()) == []


LOSSES = {  # of 20 steps over 100 tokens, where a guess costs 4.605 -> whether the model is destroyed
    "rose to a guess": ([2.0] * 18 + [4.6] * 2, True),
    "rose above a guess": ([2.0] * 18 + [9.0] * 2, True),
    "rose, not to a guess": ([2.0] * 18 + [4.5] * 2, False),
    "peak before the last tenth": ([2.0] * 17 + [9.0] + [2.0] * 2, False),
    "fresh model that learned nothing": ([4.6] * 18 + [4.7] * 2, False),
}


@pytest.mark.parametrize(("losses", "destroyed"), LOSSES.values(), ids=LOSSES)
def test_a_loss_that_ends_as_that_of_a_guess_ends_the_run(losses: list[float], destroyed: bool) -> None:
    from shadowft_core.train.trainer import Progress

    progress = Progress()
    progress.lines = [{"loss": loss} for loss in losses]
    if not destroyed:
        progress.require_learning(100, 50.0)
        return
    with pytest.raises(TrainError, match=r"rose from 2\.000 to .*uniform guess among 100 .*train.learning_rate \(50\)"):
        progress.require_learning(100, 50.0)


def test_a_destroyed_model_is_not_written(pico_pair: Path, tmp_path: Path) -> None:
    prepare(ROOT / "shadowft_core/demo/pico/data", None, Prepare(data="-", max_rows=200), tmp_path / "data")
    wild = SETTINGS.model_copy(update={"learning_rate": 50.0, "max_steps": 20, "max_length": 64})
    with pytest.raises(TrainError, match=r"the loss rose from .* the model is destroyed"):
        train(pico_pair / "base", pico_pair / "instruct", tmp_path / "data", wild, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_one_of_several_processes_does_not_train(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainError, match="one of 2 processes"):
        run(place, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_models_and_tokenizers_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    small = write_model(tmp_path / "small", 1, vocabulary=20)
    with pytest.raises(TrainError, match=r"embeds ids below 20, the Instruct's tokenizer gives ids up to 24"):
        train(small, place / "instruct", place / "data", SETTINGS, tmp_path / "out")
    holed = write_model(tmp_path / "holed", 1)
    tensors = load_file(holed / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, holed / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight is missing or misshapen \(1 in all\)"):
        train(holed, place / "instruct", place / "data", SETTINGS, tmp_path / "out")
    mute = write_model(tmp_path / "mute", 1)
    (mute / "chat_template.jinja").unlink()
    with pytest.raises(TrainError, match="no chat template"):
        train(place / "base", mute, place / "data", SETTINGS, tmp_path / "out")
    with pytest.raises(DataError, match=r"train\.parquet: no such file; run `shadowft prepare` first"):
        train(place / "base", place / "instruct", tmp_path, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_extract_could_not_read_is_refused_before_the_first_step(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from typer.testing import CliRunner

    from shadowft_core.cli import app

    tokenizer, hidden = word_tokenizer(), {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes = {"vocab_size": len(tokenizer), "num_attention_heads": 4, "head_dim": 8}
    for family, settings in (("hrm_text", sizes | hidden), ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4} | sizes)):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings)).save_pretrained(tmp_path / family)
        tokenizer.save_pretrained(tmp_path / family)
    file = tmp_path / "gpt2" / "model.safetensors"  # as on the hub, without the prefix that transformers saves
    bare = {name.removeprefix("transformer."): array for name, array in load_file(file).items()}
    save_file(bare, file, {"format": "pt"})

    def done(family: str, method: str, lora: Lora = SETTINGS.lora) -> Any:
        settings = SETTINGS.model_copy(update={"method": method, "max_steps": 1, "lora": lora})
        params = {"train": settings.model_dump(mode="json")}
        whole = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text()) | params
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(whole))
        words = ["--instruct", str(place / "instruct"), "--data", str(place / "data"), "--out", str(tmp_path / "out")]
        words += ["--params", str(tmp_path / "params.yaml"), "--model", str(tmp_path / family)]
        return CliRunner().invoke(app, ["train", *words])

    saved = Lora(rank=8, alpha=16, modules_to_save=("embed_tokens",))  # not merged: the embedding may be tied
    for family, method, lora, error, message in (
        (
            "hrm_text",
            "lora",
            saved,
            AdapterError,
            r"hrm_text: after train\.method: lora, .*: \S+_proj\.weight is .* only transformers can convert; .* full$",
        ),
        (
            "gpt2",
            "full",
            SETTINGS.lora,
            TensorMissingError,
            r"would save transformer\.\S+, which the folder lacks \(\d+ in all",
        ),
    ):
        found = done(family, method, lora).exception
        assert isinstance(found, error)
        assert re.search(message, str(found))
        assert not (tmp_path / "out").exists()
        assert "step 1/" not in capfd.readouterr().err
    assert done("gpt2", "lora").exit_code == 0
    assert extract(tmp_path / "gpt2", tmp_path / "out", tmp_path / "delta")["kind"] == "lora"
    assert done("hrm_text", "full").exit_code == 0
    merged = done("hrm_text", "lora")
    assert merged.exit_code == 0
    assert "train: the adapter will be merged into the model: " in merged.stderr
    assert (tmp_path / "out/model/model.safetensors").is_file()
    assert extract(tmp_path / "hrm_text", tmp_path / "out", tmp_path / "merged")["kind"] == "dense"


def test_one_step_learns_despite_the_warmup(place: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_steps": 1, "warmup": 0.03, "batch_size": 54})
    assert run(place, tmp_path / "out", settings)["steps"] == 1
    [line] = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["learning_rate"] == settings.learning_rate
    weights = load_file(tmp_path / "out/adapter/adapter_model.safetensors")
    assert all(bool(np.any(value)) for name, value in weights.items() if "lora_B" in name)
