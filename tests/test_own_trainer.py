"""`extract` takes what transformers' own Trainer saves, as docs/training.md says under "Your own trainer"."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from shadowft_core.cli.tables import show_receipt
from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import CheckpointError, WrongBaseError
from shadowft_core.grafting import graft
from shadowft_core.grafting.receipt import read_receipt
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair

STEPS = 2


def trained(base: Path, out: Path, lora: bool) -> Path:
    """The last checkpoint folder of a training by transformers' Trainer, which our code has no part in."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 60, (4, 8)).tolist()]
    settings = TrainingArguments(
        str(out),
        max_steps=STEPS,
        save_steps=STEPS,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    Trainer(model, settings, train_dataset=rows).train()
    return out / f"checkpoint-{STEPS}"


def weights_after(base: Path, tuned: Path, lora: bool) -> dict[str, torch.Tensor]:
    """The trained weights in float32, as transformers and PEFT load them."""
    if not lora:
        state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(tuned, dtype=torch.float32).state_dict()
        return state
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged: dict[str, torch.Tensor] = PeftModel.from_pretrained(model, tuned).merge_and_unload().state_dict()
    return merged


@pytest.mark.parametrize(("lora", "kind"), [(True, "lora"), (False, "dense")], ids=["adapter", "model"])
def test_a_folder_of_transformers_trainer_is_extracted(
    lora: bool, kind: str, tiny_llama_pair: Pair, tmp_path: Path
) -> None:
    tuned = trained(tiny_llama_pair.base, tmp_path / "own", lora)
    assert (tuned / "optimizer.pt").is_file()  # files of the trainer do no harm
    assert extract(tiny_llama_pair.base, tuned, tmp_path / "delta")["kind"] == kind
    delta, base = open_delta(tmp_path / "delta"), open_checkpoint(tiny_llama_pair.base)
    expected = weights_after(tiny_llama_pair.base, tuned, lora)
    assert delta.names
    for name in delta.names:
        before = base.read(name).astype(np.float32)
        np.testing.assert_allclose(before + delta.read(name), expected[name].numpy(), rtol=1e-6, atol=1e-7)


def test_a_record_beside_the_result_names_the_model_that_was_tuned(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    tuned, base = trained(tiny_llama_pair.base, tmp_path / "own", lora=True), open_checkpoint(tiny_llama_pair.base)
    record = {"model_digest": base.digest(), "data_digest": "sha256:of my rows", "seed": 3}
    (tuned / "train.json").write_text(json.dumps(record))
    extract(tiny_llama_pair.base, tuned, tmp_path / "delta")
    certificate = json.loads((tmp_path / "delta" / "delta.json").read_text())
    assert (certificate["train"]["data_digest"], certificate["train"]["seed"]) == ("sha256:of my rows", 3)
    with pytest.raises(WrongBaseError, match="pass the model it was tuned from"):
        extract(tiny_llama_pair.instruct, tuned, tmp_path / "other")


def test_facts_of_the_trainer_reach_certificate_receipt_and_its_account(
    tiny_llama_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = trained(tiny_llama_pair.base, tmp_path / "own", lora=True)
    (tuned / "training_args.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")  # a pickle that would end this process
    state = json.loads((tuned / "trainer_state.json").read_text())
    state["log_history"] = [{"step": 1, "loss": 4.5}, {"step": 2, "loss": 3.5}, {"step": 2, "eval_loss": 3.25}]
    (tuned / "trainer_state.json").write_text(json.dumps(state))
    facts = extract(tiny_llama_pair.base, tuned, tmp_path / "delta")
    text = (tmp_path / "delta" / "delta.json").read_text()
    trainer = json.loads(text)["trainer"]
    assert facts["trainer"] == trainer
    assert trainer["name"] == "transformers"
    assert trainer["facts"] | {"steps": 2, "first_loss": 4.5, "last_loss": 3.5, "valid_loss": 3.25} == trainer["facts"]
    assert (trainer["facts"]["base"], trainer["facts"]["rank"]) == ("a local folder", 4)
    assert trainer["not_known"] == ["starting model", "data", "how rows were rendered", "seed"]
    assert str(tmp_path) not in text
    assert str(tiny_llama_pair.base) not in text
    graft(tiny_llama_pair.instruct, [(tmp_path / "delta", 1.0)], tmp_path / "grafted")
    account = read_receipt(tmp_path / "grafted")
    assert account["trained"] == {account["deltas"][0]["digest"]: trainer}
    show_receipt(account)
    said = (
        "tuned by transformers from a local folder, steps 2, epochs 1, loss 4.500 -> 3.500; not known: starting model"
    )
    assert said in capsys.readouterr().out


def test_the_state_of_the_last_checkpoint_tells_of_a_result_that_lies_above_it(
    tiny_llama_pair: Pair, tmp_path: Path
) -> None:
    checkpoint = trained(tiny_llama_pair.base, tmp_path / "own", lora=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(checkpoint / name, tmp_path / "own" / name)  # as trainer.save_model() does at the end
    found = extract(tiny_llama_pair.base, tmp_path / "own", tmp_path / "delta")["trainer"]
    assert (found["name"], found["facts"]["steps"]) == ("transformers", STEPS)


def test_a_file_of_the_trainer_that_cannot_be_read_is_named(
    tiny_llama_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = trained(tiny_llama_pair.base, tmp_path / "own", lora=True)
    (tuned / "trainer_state.json").write_text('{"global_step": 2, "log_')
    found = extract(tiny_llama_pair.base, tuned, tmp_path / "delta")["trainer"]
    assert found["unreadable"] == ["trainer_state.json"]
    assert {"steps", "losses"} <= set(found["not_known"])
    assert "trainer_state.json: left out of the training's facts: not readable" in capsys.readouterr().err


def test_weights_that_are_not_safetensors_are_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    tuned = shutil.copytree(tiny_llama_pair.base, tmp_path / "own")
    (tuned / "model.safetensors").unlink()
    torch.save({}, tuned / "pytorch_model.bin")
    torch.save({}, tuned / "training_args.bin")
    with pytest.raises(CheckpointError, match=r"expected safetensors, found only pytorch_model\.bin; pass"):
        extract(tiny_llama_pair.base, tuned, tmp_path / "delta")
