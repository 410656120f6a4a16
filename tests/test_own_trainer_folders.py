"""Folders that trainers leave: which result is taken, and which are refused with what to do."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from shadowft_core.delta import extract, open_difference
from shadowft_core.errors import AdapterError, CheckpointError, DeltaError, ShadowError, WrongBaseError
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import Pair, save_adapter, save_model
from tests.test_delta_layout import model, tensors

AXOLOTL = """---
library_name: peft
base_model: NousResearch/Llama-3.2-1B
tags:
- axolotl
- generated_from_trainer
datasets:
- teknium/GPT4-LLM-Cleaned
- /home/me/private.jsonl
---

<details><summary>See axolotl config</summary>

axolotl version: `0.19.0`
```yaml
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
adapter: lora
learning_rate: 2e-4
seed: 7
```

</details><br>

### Framework versions

- PEFT 0.19.1
- Transformers 5.3.0
- Pytorch 2.9.1
"""  # as its train.py and the model card of transformers write it
FACTORY = """model_name_or_path: Qwen/Qwen3-8B-Base
stage: sft
finetuning_type: full
dataset: mine
seed: 42
learning_rate: 1.0e-5
"""  # training_args.yaml, as its web interface writes it


def whole(folder: Path, seed: int = 1) -> Path:
    return model(folder, tensors(seed, width=16))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return whole(tmp_path / "base", 0)


def state(folder: Path, step: int, **more: Any) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []} | more))


def refusal(base: Path, tuned: Path, error: type[ShadowError]) -> str:
    with pytest.raises(error) as raised:
        extract(base, tuned, base.parent / "delta")
    assert type(raised.value) is error
    message = str(raised.value)
    if error is not AdapterError:  # a graft in one pass takes no adapter
        with pytest.raises(error, match=re.escape(message)):
            open_difference(base, tuned)
    assert not (base.parent / "delta").exists()
    assert len(message) < 1000
    assert "\n" not in message
    return message


def test_a_folder_with_checkpoints_only_is_refused_with_the_choices_and_the_best(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step, best in ((200, 1000), (1000, 200)):
        state(whole(run / f"checkpoint-{step}"), step, best_model_checkpoint=f"/elsewhere/run/checkpoint-{best}")
    (run / "checkpoint-300").mkdir()  # without a result, so no choice
    (whole(run / "checkpoint-400") / "adapter_config.json").touch()  # with two
    (run / "checkpoint-400/adapter_model.safetensors").touch()
    message = refusal(base, run, DeltaError)
    assert "pass one of its folders: checkpoint-200, checkpoint-1000, checkpoint-200 is the best" in message
    for step in range(1001, 1007):
        whole(run / f"checkpoint-{step}")
    state(run / "checkpoint-1006", 1006, best_model_checkpoint="checkpoint-900")  # which is not there
    message = refusal(base, run, DeltaError)
    assert message.endswith("checkpoint-1003, checkpoint-1004 and 2 more")


def test_axolotl_that_was_interrupted_leaves_a_config_without_weights(base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter_config.json").write_text("{}")  # it is saved before the training
    whole(run / "checkpoint-5")
    message = refusal(base, run, DeltaError)
    assert "has only adapter_config.json of it" in message
    assert "checkpoint-5" in message


def test_a_result_that_is_older_than_a_checkpoint_is_refused(base: Path, tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    state(run, 100)
    whole(run / "checkpoint-100")
    extract(base, run, tmp_path / "first")
    whole(run / "checkpoint-150")
    message = refusal(base, run, DeltaError)
    assert "its result is of step 100" in message
    assert f"pass {run / 'checkpoint-150'}" in message


@pytest.mark.parametrize(
    ("piece", "error", "words"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", CheckpointError, "accelerate merge-weights {} OUT"),
        ("pytorch_model_fsdp.bin", CheckpointError, "save_model"),
        ("global_step40/zero_pp_rank_0_mp_rank_00_model_states.pt", CheckpointError, "zero_to_fp32.py . OUT"),
        ("zero_to_fp32.py", CheckpointError, "--safe_serialization"),
        ("adapter_model-00001-of-00002.safetensors", AdapterError, "load it with PEFT"),
        ("consolidated.00.pth", CheckpointError, "save_pretrained"),
        ("model-Q8_0.gguf", CheckpointError, "save_pretrained"),
    ],
)
@pytest.mark.parametrize("inside", ["", "checkpoint-40"])
def test_pieces_of_a_parallel_training_are_named_with_the_remedy(
    base: Path, tmp_path: Path, piece: str, error: type[ShadowError], words: str, inside: str
) -> None:
    run = tmp_path / "run"
    place = run / inside / piece
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    if inside:  # an earlier one is not named
        (run / "checkpoint-9").mkdir()
        (run / "checkpoint-9/pytorch_model_fsdp.bin").touch()
    (run / "training_args.bin").write_bytes(b"")
    message = refusal(base, run, error)
    assert piece.split("/", maxsplit=1)[0] in message
    assert words.format(run / inside / piece.split("/", maxsplit=1)[0]) in message
    assert f"{run / inside}: has only" in message


def test_optimizer_states_beside_a_result_do_no_harm(base: Path, tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    (run / "global_step40").mkdir()
    (run / "pytorch_model_fsdp_0").mkdir()
    assert extract(base, run, tmp_path / "delta")["kind"] == "dense"


def test_files_of_a_model_without_their_index_are_named_with_the_remedy(base: Path, tmp_path: Path) -> None:
    tuned = whole(tmp_path / "tuned")
    (tuned / "model.safetensors").rename(tuned / "model-00001-of-00002.safetensors")
    said = refusal(base, tuned, CheckpointError)
    assert "has model-00001-of-00002.safetensors, but neither model.safetensors nor" in said
    assert "save or download the folder again, with the index" in said


@pytest.mark.parametrize("name", ["value_head.safetensors", "value_head.bin"])
def test_a_value_head_is_refused_by_name(base: Path, tmp_path: Path, name: str) -> None:
    run = whole(tmp_path / "run")
    shutil.copyfile(run / "model.safetensors", run / name)
    assert "value_head belongs to a reward model or to PPO" in refusal(base, run, DeltaError)
    (run / "model.safetensors").rename(run / "adapter_model.safetensors")
    (run / "adapter_config.json").write_text("{}")
    assert "value_head belongs to a reward model or to PPO" in refusal(base, run, DeltaError)


def test_the_words_of_axolotl_and_of_llama_factory_are_read(base: Path, tmp_path: Path) -> None:
    run = whole(tmp_path / "run")
    (run / "README.md").write_text(AXOLOTL)
    found = extract(base, run, tmp_path / "delta")["trainer"]
    versions = {"axolotl": "0.19.0", "peft": "0.19.1", "transformers": "5.3.0", "torch": "2.9.1"}
    assert (found["name"], found["facts"]["seed"], found["facts"]["learning_rate"]) == ("axolotl", 7, 2e-4)
    assert found["facts"]["base"] == "NousResearch/Llama-3.2-1B"
    assert found["facts"]["datasets"] == ["teknium/GPT4-LLM-Cleaned"]  # not the path
    assert found["facts"]["versions"] == versions
    (run / "README.md").unlink()
    (run / "training_args.yaml").write_text(FACTORY)
    found = extract(base, run, tmp_path / "delta")["trainer"]
    assert (found["name"], found["facts"]["seed"], found["facts"]["base"]) == (
        "LLaMA-Factory",
        42,
        "Qwen/Qwen3-8B-Base",
    )


def test_the_model_that_the_settings_of_a_trainer_name_is_compared(base: Path, tmp_path: Path) -> None:
    run, other = whole(tmp_path / "run"), whole(tmp_path / "other", 5)
    (run / "training_args.yaml").write_text(FACTORY.replace("Qwen/Qwen3-8B-Base", str(other)))
    assert f"training_args.yaml: names {other} as the starting model" in refusal(base, run, WrongBaseError)


def named(folder: Path, name: str) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


def test_the_model_that_an_adapter_names_is_compared(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    base, adapter = tiny_llama_pair.base, tmp_path / "adapter"
    save_adapter(base, adapter)
    named(adapter, str(tiny_llama_pair.instruct))
    with pytest.raises(
        WrongBaseError, match=r"adapter_config\.json: names .*instruct as the starting model, but tensor"
    ):
        extract(base, adapter, tmp_path / "delta")
    record = adapter / "train.json"
    record.write_text(json.dumps({"model_digest": open_checkpoint(base).digest()}))  # says more than a name
    extract(base, adapter, tmp_path / "delta")
    record.unlink()
    named(adapter, str(whole(tmp_path / "unlike")))
    (tmp_path / "unlike/model.safetensors").unlink()
    save_file({"other": np.ones(2, np.float32)}, tmp_path / "unlike/model.safetensors")
    with pytest.raises(WrongBaseError, match=r"starting model, but it has no tensor of"):
        extract(base, adapter, tmp_path / "delta")
    copied = shutil.copytree(base, tmp_path / "copied")
    named(adapter, str(copied))
    extract(base, adapter, tmp_path / "delta")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    shutil.copyfile(tiny_llama_pair.instruct / "model.safetensors", copied / "model.safetensors")
    extract(base, adapter, tmp_path / "delta")


def test_the_same_model_in_another_dtype_is_no_other_model(tmp_path: Path) -> None:
    save_model(tmp_path / "wide", dtype="float32")
    wide = tmp_path / "wide"
    narrow = shutil.copytree(wide, tmp_path / "narrow")
    arrays = {name: array.astype(np.float16) for name, array in load_file(wide / "model.safetensors").items()}
    save_file(arrays, narrow / "model.safetensors")
    save_adapter(wide, tmp_path / "adapter")  # names `wide`
    assert extract(narrow, tmp_path / "adapter", tmp_path / "delta")["trainer"]["facts"]["base"] == "a local folder"
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * np.float16(1.5)
    save_file(arrays, narrow / "model.safetensors")
    with pytest.raises(WrongBaseError, match=r"tensor model\.norm\.weight differs"):
        extract(narrow, tmp_path / "adapter", tmp_path / "delta")


def test_a_hub_name_of_the_other_model_of_the_pair_is_refused(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama_pair.base, tmp_path / "pair" / "base")
    refs = {"base": {"ref": "hf:Own/Model-Base@1"}, "instruct": {"ref": "hf:Own/Model@2"}}
    (tmp_path / "pair" / "pair.json").write_text(json.dumps(refs))
    adapter = tmp_path / "adapter"
    save_adapter(base, adapter)
    named(adapter, "own/model")
    with pytest.raises(WrongBaseError, match="the Base of the pair, and that is its Instruct; pass the model"):
        extract(base, adapter, tmp_path / "delta")
    for other in ("Own/Model-Base", "unsloth/model-base-bnb-4bit"):  # a mirror of the Base has a name of its own
        named(adapter, other)
        assert extract(base, adapter, tmp_path / "delta")["trainer"]["facts"]["base"] == other
    refs["base"]["ref"] = "hf:Own/Model@1"  # both are revisions of one repository
    (tmp_path / "pair" / "pair.json").write_text(json.dumps(refs))
    named(adapter, "own/model")
    extract(base, adapter, tmp_path / "delta")


@pytest.mark.parametrize("rows", [40, 44])
def test_a_whole_model_tuned_from_the_other_model_of_the_pair_is_refused(tmp_path: Path, rows: int) -> None:
    """Also if the Instruct has more tokens."""

    def moved(seed: int, scale: float, above: dict[str, Any]) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {
            name: (array.astype(np.float32) + scale * rng.standard_normal(array.shape)).astype(array.dtype)
            for name, array in above.items()
        }

    weights, longer = tensors(0, width=16), tensors(0, rows, width=16)
    base = model(tmp_path / "pair/base", weights)
    instruct = model(tmp_path / "pair/instruct", apart := moved(1, 0.004, longer))
    (tmp_path / "pair/pair.json").write_text("{}")
    apart = {name: array[: len(weights[name])] for name, array in apart.items()}
    run = model(tmp_path / "run", moved(2, 0.0004, apart))
    assert f"is nearer to {instruct}" in refusal(base, run, WrongBaseError).replace("pair/delta", "delta")
    if rows == 40:
        assert extract(instruct, run, tmp_path / "delta")["kind"] == "dense"
    between = {name: array + 0.6 * (apart[name].astype(np.float32) - array) for name, array in weights.items()}
    far = {"far": moved(3, 0.01, weights), "between": {n: a.astype(weights[n].dtype) for n, a in between.items()}}
    for name, found in far.items():  # much training, not evidently from the other one
        assert extract(base, model(tmp_path / name, found), tmp_path / "delta")["kind"] == "dense"
    (run / "train.json").write_text(json.dumps({"model_digest": open_checkpoint(base).digest()}))
    assert extract(base, run, tmp_path / "delta")["kind"] == "dense", "the record says more"
    (run / "train.json").unlink()
    (tmp_path / "pair/pair.json").unlink()
    assert extract(base, run, tmp_path / "delta")["kind"] == "dense", "two folders of these names are no pair"
