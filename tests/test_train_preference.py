"""Training on preferences: TRL's DPO on tiny models. Its loss is compared with the paper's formula, computed apart."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shadowft_core.delta import extract
from shadowft_core.errors import TrainError
from shadowft_core.grafting import graft
from shadowft_core.params import Dpo, Launch, Lora, Osf, Render, Train
from shadowft_core.rendering import load_renderer
from shadowft_core.train import train
from shadowft_core.train.device import set_up
from shadowft_core.train.encode import Encoded
from shadowft_core.train.methods import with_method
from shadowft_core.train.models import load_model
from shadowft_core.train.pairs import encode_pairs
from shadowft_core.train.trainer import make_trainer
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import shifted
from tests.fixtures.training import SETTINGS, run, tree, write_model, write_place

BETA = 0.3
DPO = SETTINGS.model_copy(update={"objective": "dpo", "learning_rate": 0.001, "epochs": 1, "dpo": Dpo(beta=BETA)})
FULL = DPO.model_copy(update={"method": "full"})
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"method": "full"},
    "dora": {"lora": Lora(rank=8, alpha=16, dora=True)},
    "osf": {"method": "osf", "osf": Osf(preserved=0.25)},
    "modules": {"lora": Lora(rank=8, alpha=16, modules_to_save=("lm_head", "model.norm"))},
    "tokens": {},
    "warm": {},  # the adapter of an earlier training, as by train.start: champion
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/, instruct/ and data/: 66 sums, the right result against the last number."""
    return write_place(
        tmp_path_factory.mktemp("preference"),
        lambda a, b: {"prompt": f"{a} plus {b}", "chosen": f"is {a + b}", "rejected": f"be {b} . {a}"},
    )


@pytest.mark.parametrize("settings", [DPO, FULL], ids=["lora", "full"])
def test_training_widens_the_margin_and_repeats_bit_for_bit(place: Path, tmp_path: Path, settings: Train) -> None:
    facts = run(place, tmp_path / "one", settings)
    lines = [json.loads(line) for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert facts["objective"] == "dpo"
    assert facts["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert facts["preferences"] == {
        "pairs": 54,
        "first_accuracy": 0.0,
        "first_margin": 0.0,
        "last_accuracy": lines[-1]["accuracy"],
        "last_margin": lines[-1]["margin"],
    }
    assert lines[-1]["margin"] > 0.1
    assert lines[-1]["accuracy"] > 0.9
    assert all(line["margin"] == pytest.approx(line["reward_chosen"] - line["reward_rejected"]) for line in lines)
    assert facts["valid_loss"] < math.log(2) - 0.03
    assert facts["stops"]["prompts"] == facts["rows"]["valid"]["rows"] == 12
    used = facts["rows"]["train"]
    assert (used["rows"], used["sequences"]) == (54, 108)
    assert used["learned_tokens"] == 54 * (3 + 5)
    assert lines[-1]["tokens"] == used["tokens"] == 54 * (14 + 16)
    sample = json.loads((tmp_path / "one/samples.jsonl").read_text().splitlines()[0])
    assert [piece["text"] for piece in sample["pieces"]] == [
        "<|im_start|> user : 0 plus 0 <|im_end|> . <|im_start|> assistant :",
        "is 0 <|im_end|>",
    ]
    assert sample["rejected"] == "be 0 . 0 <|im_end|>"
    run(place, tmp_path / "two", settings)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def network_of(place: Path, method: str, **changes: Any) -> tuple[Any, Any, Encoded, Train]:
    renderer = load_renderer(place / "instruct", Render())
    params = DPO.model_copy(update=METHODS[method] | changes)
    set_up(params)
    base = place / "base"
    if method in ("tokens", "modules"):
        base = untied(place)
    network = load_model(base, renderer.tokenizer, False, params)
    token_rows = {"model.embed_tokens": [2, 3], "lm_head": [2, 3]} if method == "tokens" else None
    network = with_method(network, params, token_rows)
    if method == "warm":
        for name, weight in network.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(3))
    return network, renderer.tokenizer, encode_pairs(place / "data/train.parquet", renderer, 40), params


def untied(place: Path) -> Path:
    """The Base with a head of its own."""
    from safetensors.numpy import load_file, save_file

    folder = place / "untied"
    if not folder.exists():
        write_model(folder, 1)
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return folder


def log_probabilities(network: Any, rows: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Those of the chosen and of the rejected replies, float64 (n,), one sequence at a time, from plain logits."""
    found: tuple[list[float], list[float]] = ([], [])
    model = network.get_base_model() if hasattr(network, "get_base_model") else network
    training = model.training
    model.eval()
    for at, ids in enumerate(rows.input_ids):
        first = rows.prompt(at)
        for reply, sums in zip((ids[first:], rows.rejected[at]), found, strict=True):
            whole = torch.tensor(np.concatenate([ids[:first], reply])[None].astype(np.int64))
            with torch.no_grad():
                logits = model(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0, :-1].double()
            spoken = logits.log_softmax(-1)[torch.arange(whole.shape[1] - 1), whole[0, 1:]]
            sums.append(float(spoken[first - 1 :].sum()))
    model.train(training)
    return np.array(found[0]), np.array(found[1])


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_that_of_the_paper_for_every_method(place: Path, tmp_path: Path, method: str) -> None:
    """Equation 7 of arXiv 2305.18290: the loss of each pair before training is ln 2, after it that of the formula."""
    network, tokenizer, rows, params = network_of(place, method, batch_size=1)
    reference = log_probabilities(network, rows)
    trainer = make_trainer(network, tokenizer, rows, params.model_copy(update={"batch_size": 9}), tmp_path)

    def losses() -> np.ndarray:
        trainer.model.eval()  # in training, each would be weighted as a micro-batch of a step
        return np.array([trainer.compute_loss(trainer.model, batch).item() for batch in singles(trainer)])

    assert losses() == pytest.approx(math.log(2), abs=2e-6)
    trainer.train()
    chosen, rejected = (
        after - before for after, before in zip(log_probabilities(network, rows), reference, strict=True)
    )
    expected = np.log1p(np.exp(-BETA * (chosen - rejected)))
    assert losses() == pytest.approx(expected, abs=5e-6)
    assert expected.mean() < math.log(2) - 0.02


def singles(trainer: Any) -> Any:
    """Batches of one pair, in the order of the rows."""
    for row in trainer.train_dataset:
        yield trainer.data_collator([row])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_settings_reach_the_trainer(place: Path, tmp_path: Path, method: str) -> None:
    network, tokenizer, rows, params = network_of(place, method, accumulation=3, max_steps=7, seed=5)
    args = make_trainer(network, tokenizer, rows, params, tmp_path, None, rows).args
    expected = {
        "beta": BETA, "loss_type": ["sigmoid"], "label_smoothing": 0.0, "f_divergence_type": "reverse_kl",
        "ld_alpha": None, "max_length": None, "use_weighting": False, "router_aux_loss_coef": 0.0,
        "gradient_accumulation_steps": 3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8,
        "max_steps": 7, "seed": 5, "data_seed": 5, "learning_rate": 0.001, "max_grad_norm": 1.0, "weight_decay": 0.0,
        "precompute_ref_log_probs": method == "full", "sync_ref_model": False,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected


def test_no_second_adapter_and_no_padding_token_stay_behind(place: Path, tmp_path: Path) -> None:
    """TRL copies the adapter as a reference, and writes the tokenizer's padding token to the model's config."""
    network, tokenizer, rows, params = network_of(place, "lora")
    before = network.config.to_dict()
    make_trainer(network, tokenizer, rows, params, tmp_path)
    assert list(network.peft_config) == ["default"]
    assert not [name for name, _ in network.named_parameters() if ".ref." in name]
    assert network.config.to_dict() == before
    assert network.active_adapter == "default"


def test_dropout_is_that_of_the_adapter_alone(place: Path, tmp_path: Path) -> None:
    network, tokenizer, rows, params = network_of(place, "lora", lora=Lora(rank=8, alpha=16, dropout=0.5))
    attention = network.get_base_model().model.layers[0].self_attn
    attention.attention_dropout = 0.5
    trainer = make_trainer(network, tokenizer, rows, params, tmp_path)
    assert attention.attention_dropout == 0.0
    assert {module.p for name, module in network.named_modules() if isinstance(module, torch.nn.Dropout)} == {0.5}
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    network.train()
    torch.manual_seed(0)
    trainer._weights = [1.0, 1.0]
    one, two = (trainer.compute_loss(network, batch).item() for _ in range(2))
    assert one != two
    network.eval()
    one, two = (trainer.compute_loss(network, batch).item() for _ in range(2))
    assert one == two


def test_the_computed_reference_is_that_of_the_start_without_dropout(place: Path, tmp_path: Path) -> None:
    network, tokenizer, rows, params = network_of(place, "warm", lora=Lora(rank=8, alpha=16, dropout=0.5))
    expected = log_probabilities(network.eval(), rows)
    found = make_trainer(network.train(), tokenizer, rows, params, tmp_path).train_dataset
    assert network.get_base_model().training
    for name, logps in zip(("ref_chosen_logps", "ref_rejected_logps"), expected, strict=True):
        assert np.array(found[name]) == pytest.approx(logps, abs=1e-4)


def test_a_reference_that_cannot_be_computed_is_refused(place: Path, tmp_path: Path) -> None:
    """Of a model with trained token rows in a sharded model, and of one in 4 bits (mock: only its mark)."""
    network, tokenizer, rows, params = network_of(place, "tokens", launch=Launch(strategy="fsdp"))
    with pytest.raises(TrainError, match=r"strategy fsdp shards the model, but the reference .* set it to ddp"):
        make_trainer(network, tokenizer, rows, params, tmp_path)
    network, tokenizer, rows, params = network_of(place, "warm")
    network.is_loaded_in_4bit = True
    with pytest.raises(TrainError, match=r"qlora trains a new adapter alone"):
        make_trainer(network, tokenizer, rows, params, tmp_path)


def test_an_adapter_of_the_head_is_refused(place: Path, tmp_path: Path) -> None:
    """TRL multiplies with the weight of the head itself, past the adapter."""
    from peft import LoraConfig, get_peft_model

    renderer = load_renderer(place / "instruct", Render())
    network = load_model(untied(place), renderer.tokenizer, False, DPO)
    network = get_peft_model(network, LoraConfig(target_modules=["q_proj", "lm_head"]))
    rows = encode_pairs(place / "data/train.parquet", renderer, 40)
    with pytest.raises(TrainError, match="an adapter of the head is not trained on preferences"):
        make_trainer(network, renderer.tokenizer, rows, DPO, tmp_path)


def test_each_pair_of_a_step_counts_alike(place: Path, tmp_path: Path) -> None:
    """54 pairs in one micro-batch, or in two of 40 and 14."""
    found = []
    for size, many in ((54, 1), (40, 2)):
        update = {"batch_size": size, "accumulation": many, "epochs": 3, "learning_rate": 0.01}
        run(place, tmp_path / str(size), DPO.model_copy(update=update))
        lines = (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line) for line in lines])
    assert len(found[0]) == len(found[1]) == 3
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert found[0][-1]["grad_norm"] > 0.1


@pytest.mark.parametrize("settings", [DPO, FULL], ids=["lora", "full"])
def test_the_change_is_extracted_and_grafted(place: Path, tmp_path: Path, settings: Train) -> None:
    run(place, tmp_path / "tuned", settings)
    extract(place / "base", tmp_path / "tuned", tmp_path / "delta")
    shifted(place / "base", tmp_path / "instruct", 0.01, seed=3)
    graft(tmp_path / "instruct", [(tmp_path / "delta", 1.0)], tmp_path / "grafted")
    before, after = open_checkpoint(tmp_path / "instruct"), open_checkpoint(tmp_path / "grafted")
    changed = {name for name in before.names if (before.read(name) != after.read(name)).any()}
    assert len(changed) == (14 if settings.method == "lora" else len(list(before.names)))


def test_frozen_weights_of_16_bits_give_the_bits_of_float32(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL multiplies with the weight of the head itself, past the layer that casts it."""
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(place / "base", tmp_path / "base")
    narrow = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(narrow, base / "model.safetensors", {"format": "pt"})
    found = []
    for out in ("narrow", "wide"):
        train(base, place / "instruct", place / "data", DPO, tmp_path / out)
        facts = json.loads((tmp_path / out / "train.json").read_text())
        assert (facts["frozen_bytes_saved"] > 0) == (out == "narrow")
        weights = (tmp_path / out / "adapter/adapter_model.safetensors").read_bytes()
        found.append((facts["first_loss"], facts["last_loss"], facts["valid_loss"], weights))
        monkeypatch.setattr("shadowft_core.train.models.stored_dtype", lambda _: torch.float32)
        monkeypatch.setattr("shadowft_core.train.models.keep_narrow", lambda *_: None)
    assert found[0] == found[1]
