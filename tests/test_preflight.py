"""What is measured before training: losses and gradients of both models on the rows of the first step."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shadowft_core.errors import DataError, TrainError
from shadowft_core.params import Render, Train
from shadowft_core.rendering import load_renderer
from shadowft_core.train.preflight import _Gradients, _kind, preflight
from shadowft_core.train.rows import encoded_rows
from tests.fixtures.training import SETTINGS, run

SIGMA = {"overall": 0.1, "modules": {"q_proj": 0.2}}


@pytest.fixture
def pair(copied: Path) -> Path:
    (copied / "pair.json").write_text(json.dumps({"sigma": SIGMA | {"tensors": {"t": 0.3}}}))
    return copied


def measured(pair: Path, settings: Train) -> dict[str, Any]:
    preflight(pair, pair / "data", settings, pair / "preflight.json", Render())
    found: dict[str, Any] = json.loads((pair / "preflight.json").read_text())
    assert not list(pair.glob(".gradients-*"))
    return found


def changed(**settings: Any) -> Train:
    return SETTINGS.model_copy(update={"max_steps": 1, "seed": 3} | settings)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="lora"),
        pytest.param({"accumulation": 2, "batch_size": 4, "packing": True}, id="packs"),
        pytest.param({"lora": SETTINGS.lora.model_copy(update={"dropout": 0.3})}, id="dropout", marks=pytest.mark.slow),
        pytest.param({"method": "full"}, id="full", marks=pytest.mark.slow),
        pytest.param({"gradient_checkpointing": True}, id="checkpointing", marks=pytest.mark.slow),
    ],
)
def test_losses_and_gradients_are_those_of_the_first_step_of_training(pair: Path, settings: dict[str, Any]) -> None:
    """So its seed and its order of batches are those of training."""
    found = measured(pair, changed(**settings))
    for side in ("base", "instruct"):
        facts = run(pair, pair / "tuned", changed(**settings), side)
        first = json.loads((pair / "tuned" / "metrics.jsonl").read_text().splitlines()[0])
        assert found["loss"][side] == pytest.approx(facts["first_loss"], rel=1e-6)
        assert found["norm"][side] == pytest.approx(first["grad_norm"], rel=1e-5)
    assert found["data_digest"] == facts["data_digest"]


def test_another_seed_begins_with_other_rows(pair: Path) -> None:
    first, second = (measured(pair, changed(seed=seed)) for seed in (3, 4))
    assert abs(first["loss"]["base"] - second["loss"]["base"]) > 1e-3
    assert (first["seed"], second["seed"], first["sequences"]) == (3, 4, 8)


def test_equal_models_have_equal_losses_and_a_cosine_of_1(pair: Path) -> None:
    shutil.rmtree(pair / "base")
    shutil.copytree(pair / "instruct", pair / "base")
    found = measured(pair, changed())
    assert found["loss"]["base"] == found["loss"]["instruct"]
    assert found["cosine"] == pytest.approx(1.0, abs=1e-12)
    assert found["modules"] == dict.fromkeys(
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"], pytest.approx(1.0, abs=1e-12)
    )
    assert found["sigma"] == SIGMA


def test_the_cosine_is_that_of_gradients_computed_without_a_trainer(pair: Path) -> None:
    """All rows are in the first step, so their order does not matter."""
    settings = changed(method="full", batch_size=64)
    found = measured(pair, settings)
    rows, _, _ = encoded_rows(pair / "data", load_renderer(pair / "instruct", Render()), settings, True, False)
    learned = sum(label != -100 for labels in rows.labels for label in labels)
    gradients, losses = [], []
    for side in ("base", "instruct"):
        network = AutoModelForCausalLM.from_pretrained(pair / side, dtype=torch.float32)
        total = 0.0
        for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
            logits = network(torch.tensor([list(map(int, ids))])).logits[0, :-1]
            answers = torch.tensor(list(map(int, labels[1:])))
            loss = torch.nn.functional.cross_entropy(logits, answers, reduction="sum") / learned
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        gradients.append({name: weight.grad.double() for name, weight in network.named_parameters()})
    assert list(found["loss"].values()) == pytest.approx(losses, rel=1e-5)
    for kind, told in {"": found["cosine"], "q_proj": found["modules"]["q_proj"]}.items():
        one, other = (torch.cat([g.flatten() for name, g in side.items() if kind in name]) for side in gradients)
        assert told == pytest.approx(float(one @ other / one.norm() / other.norm()), rel=1e-4)


def test_cosines_by_hand(tmp_path: Path) -> None:
    mine = {"a.q.weight": [[1.0, 2.0]], "b.q.weight": [[2.0, 0.0]], "a.k.weight": [[3.0, 0.0]], "a.v.weight": [[0.0]]}
    other = {"a.q.weight": [[2.0, 1.0]], "b.q.weight": [[0.0, 5.0]], "a.k.weight": [[-4.0, 0.0]], "a.v.weight": [[1.0]]}
    kept = _Gradients(tmp_path)
    kept.keep([(name, torch.tensor(values)) for name, values in mine.items()])
    found = kept.compared([(name, torch.tensor(values)) for name, values in other.items()])
    # q: product 4 + 0, squares 5 + 4 and 5 + 25; k: -12, 9, 16; v: the first is zero, so it has no direction
    assert found["modules"] == {"k": pytest.approx(-1.0), "q": pytest.approx(4 / (9 * 30) ** 0.5)}
    assert found["cosine"] == pytest.approx((4 - 12) / (18 * 47) ** 0.5)
    assert found["norm"] == {"base": pytest.approx(18**0.5), "instruct": pytest.approx(47**0.5)}
    with pytest.raises(TrainError, match=r"a.v.weight: only one model of the pair trains it"):
        kept.compared([(name, torch.tensor(values)) for name, values in list(other.items())[:3]])
    with pytest.raises(TrainError, match=r"a.q.weight: \(1, 2\) in the Base and \(1, 1\) in the Instruct"):
        kept.compared([(name, torch.tensor(values)[:, :1]) for name, values in other.items()])


@pytest.mark.parametrize(
    ("parameter", "kind"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight", "q_proj"),
        ("model.layers.0.mlp.up_proj.weight", "up_proj"),
        ("model.layers.0.self_attn.k_proj.bias", "k_proj"),
        ("base_model.model.lm_head.modules_to_save.default.weight", "lm_head"),
        ("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta.default", "embed_tokens"),
        ("base_model.model.model.layers.1.self_attn.v_proj.osf_U_low.default", "v_proj"),
    ],
)
def test_a_weight_belongs_to_a_kind_of_module(parameter: str, kind: str) -> None:
    assert _kind(parameter) == kind


def test_preferences_are_not_measured(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(pair, changed(objective="dpo"))
    assert found["not_measured"].startswith("the rows are preferences")
    assert "loss" not in found
    assert capsys.readouterr().err.startswith("preflight: gradients were not measured: the rows are preferences")


def test_a_full_disk_is_told_and_does_not_end_the_run(pair: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))  # the system refuses larger files
    try:
        found = measured(pair, changed(method="full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found["not_measured"].startswith("memory or disk did not suffice: ")
    assert found["sigma"] == SIGMA


def test_what_training_refuses_is_refused(pair: Path) -> None:
    with pytest.raises(TrainError, match=r"train.parquet: "):
        measured(pair, changed(max_length=8))
    (pair / "data" / "data-report.json").unlink()
    with pytest.raises(DataError, match=r"data-report.json: missing"):
        measured(pair, changed())
