"""Tiny models of the families that people train: three steps, extract, graft, load with transformers, and a new answer.

LoRA adapts every linear layer but the head. Experts are 3-d parameters, not layers: LoRA reaches them, and the
router, where PEFT knows that they once were layers (Mixtral, Qwen3-MoE); in gpt-oss it leaves them. `full` trains them.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.delta import extract, require_extractable
from shadowft_core.grafting import graft
from shadowft_core.params import Lora, Prepare, Train
from shadowft_core.prepare import prepare
from shadowft_core.train import train
from tests.families.oracle import load
from tests.families.tiny import config_of
from tests.fixtures.models import shifted
from tests.fixtures.pictures import picture, save_pictured
from tests.fixtures.training import word_tokenizer

pytestmark = pytest.mark.families
TEXT = ("llama", "qwen2", "qwen3", "gemma3_text", "mixtral", "qwen3_moe", "phi3", "glm", "glm4", "gpt_oss")
EXPERTS = {"mixtral": True, "qwen3_moe": True, "gpt_oss": False}  # whether LoRA adapts them
PICTURED = ("gemma3", "qwen2_5_vl")
APART = re.compile(r"vis|projector|merger")  # names of vision towers and projectors
TOKENS = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 3}
THREE = {
    **{"max_steps": 3, "batch_size": 4, "schedule": "constant", "warmup": 0},
    **{"max_length": 200, "lora": Lora(rank=4, alpha=8)},
}


def save_text(folder: Path, family: str) -> Path:
    """A float32 model of random weights, with a row for each token of the tokenizer, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config_of(family, **TOKENS))
        for weights in model.parameters():
            weights.data += 0.05 * torch.randn_like(weights)  # also biases, which start as zeros
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Prepared rows: `text`, and `pictured` with an image each."""
    folder = tmp_path_factory.mktemp("data")
    sums = [("text", f"{a} plus {b}", f"is {a + b}", None) for a in range(4) for b in range(4)]
    shown = [("pictured", "<image> What is it ?", reply, f"{at}.png") for at, reply in enumerate(["A cat", "A dog"])]
    for kind, rows in (("text", sums), ("pictured", shown)):
        (folder / f"{kind}-rows").mkdir()
        lines = []
        for _, asked, reply, image in rows:
            row: dict[str, Any] = {
                "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
            }
            if image:
                (folder / f"{kind}-rows" / image).write_bytes(picture(len(lines), size=(16, 16)))
                row["images"] = [image]
            lines.append(json.dumps(row) + "\n")
        (folder / f"{kind}-rows/rows.jsonl").write_text("".join(lines))
        prepare(folder / f"{kind}-rows", None, Prepare(data="-", valid=0), folder / kind)
    return {kind: folder / kind for kind in ("text", "pictured")}


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Base and an Instruct near it."""
    folder = tmp_path_factory.mktemp(request.param)
    save = save_pictured if request.param in PICTURED else save_text
    shifted(save(folder / "base", request.param), folder / "instruct", 0.005, seed=1)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("pair", [*TEXT, *PICTURED], indirect=True)
def test_a_family_is_trained_grafted_and_loaded(
    pair: Path,
    data: dict[str, Path],
    tmp_path: Path,
    method: str,
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import torch

    family = request.node.callspec.params["pair"]
    rows = data["pictured" if family in PICTURED else "text"]
    settings = Train.model_validate(THREE | {"method": method, "learning_rate": 0.02 if method == "lora" else 1e-3})
    train(pair / "base", pair / "instruct", rows, settings, tmp_path / "tuned", require_extractable)
    facts = json.loads((tmp_path / "tuned/train.json").read_text())
    assert facts["steps"] == 3
    extract(pair / "base", tmp_path / "tuned", tmp_path / "delta")
    graft(pair / "instruct", [(tmp_path / "delta", 1.0)], tmp_path / "grafted")

    receipt = json.loads((tmp_path / "grafted/receipt.json").read_text())
    grafted, instruct = load(tmp_path / "grafted"), load(pair / "instruct")
    moved = {
        name for name, tensor in grafted.state_dict().items() if not torch.equal(tensor, instruct.state_dict()[name])
    }
    matrices = {
        name
        for name, weights in grafted.named_parameters()
        if weights.ndim > 1 and not APART.search(name) and "router" not in name and ".gate.weight" not in name
    }
    assert not [name for name in moved if APART.search(name)], "tower and projector stay as they are"
    assert not [name for name in receipt["grafted"] if APART.search(name)]
    assert bool([name for name in receipt["untouched"] if APART.search(name)]) == (family in PICTURED)
    head = {"lm_head.weight"} | {name for name in matrices if "embed" in name}
    experts = {name for name in matrices if "experts" in name}
    assert bool(experts) == (family in EXPERTS)
    if method == "lora":
        left = head if EXPERTS.get(family) else head | experts
        assert matrices - left <= moved
        assert not moved & left
        said = capfd.readouterr().err
        assert (" tensors of experts stay as they are" in said) == (EXPERTS.get(family) is False)
        assert re.search(r"train: adapts \d+ matrices: .*\bo_proj", said)
    else:
        assert matrices - moved == set(), "full trains every matrix"
    ids = torch.arange(8, 24)[None]
    with torch.no_grad():
        ours, theirs = (model.eval()(input_ids=ids).logits for model in (grafted, instruct))
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() > 1e-3 * theirs.abs().max()
