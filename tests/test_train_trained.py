"""Which weights require gradients under each method, in models with biases, experts, and parts beside the text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from shadowft_core import loading
from shadowft_core.errors import TrainError
from shadowft_core.params import Lora, Osf, Train
from shadowft_core.train.methods import quantisation, with_method
from shadowft_core.train.models import save_model
from shadowft_core.train.ranks import Filled, FilledSampler
from tests.fixtures.families import TEXT
from tests.fixtures.vision import save_vision

OF_METHOD = {"lora": r"\.lora_[AB]\.", "osf": r"\.osf_svd_params\.|_low\b"}
APART = re.compile(r"vision_tower|multi_modal_projector|visual")


def settings(method: str) -> Train:
    return Train.model_validate({"method": method, "lora": Lora(rank=2, alpha=4), "osf": Osf(preserved=0.5)})


def trained(network: Any) -> list[str]:
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def model(family: str) -> Any:
    """With biases that are not zero."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **TEXT))
    for parameter in network.parameters():
        parameter.data += 0.1
    return network


@pytest.mark.parametrize(("family", "method"), [("qwen2", "lora"), ("gpt2", "lora"), ("qwen2", "osf")])
def test_an_adapter_trains_no_bias_and_no_weight_of_the_model(family: str, method: str) -> None:
    """A bias that trained would not be in the adapter's folder, nor in the delta."""
    network = model(family)
    assert any(name.endswith(".bias") for name, _ in network.named_parameters())
    found = trained(with_method(network, settings(method)))
    assert found
    assert [name for name in found if not re.search(OF_METHOD[method], name)] == []


def test_the_frozen_layers_of_qlora_are_nf4_with_double_quantisation() -> None:
    """What is asked of bitsandbytes; tests/test_train_qlora.py loads with it where it is installed."""
    found = quantisation(settings("qlora"))
    assert found is not None
    assert (found.load_in_4bit, found.bnb_4bit_quant_type, found.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert found.bnb_4bit_compute_dtype == (torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    assert all(quantisation(settings(method)) is None for method in ("lora", "osf", "full"))


def test_osf_of_a_layer_that_peft_leaves_out_is_refused() -> None:
    with pytest.raises(TrainError, match=r"osf adapts .* Linear, and transformer\.h\.0\.attn\.c_attn is a Conv1D; set"):
        with_method(model("gpt2"), settings("osf"))


def test_rows_of_a_head_with_a_bias_are_refused() -> None:
    """PEFT's wrapper of trained rows leaves the bias out."""
    rows = {"model.embed_tokens": [2, 3], "lm_head": [2, 3]}
    with pytest.raises(TrainError, match=r"head with a bias cannot be trained; set render\.template_tokens"):
        with_method(model("phi"), settings("lora"), rows)


def test_the_files_of_an_adapter_do_not_depend_on_the_order_of_a_set(tmp_path: Path) -> None:
    """PEFT writes the targets in an order that differs from process to process."""
    save_model(with_method(model("llama"), settings("lora")), False, tmp_path)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert len(config["target_modules"]) == 14
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["base_model_name_or_path"] == ""


def test_the_seed_alone_draws_the_adapter() -> None:
    """Both routes start from the same one, whatever was drawn before."""
    drawn = []
    for before, seed in ((0, 0), (1, 0), (0, 1)):
        network = model("llama")
        torch.manual_seed(before)
        adapted = with_method(network, settings("lora").model_copy(update={"seed": seed}))
        drawn.append(torch.cat([p.flatten() for name, p in adapted.named_parameters() if ".lora_A." in name]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("method", ["full", *OF_METHOD])
def test_the_parts_beside_the_language_model_stay_as_they_are(tmp_path: Path, method: str) -> None:
    folder = save_vision(tmp_path / "model", "gemma3")
    network, _ = loading.load_model(AutoModelForImageTextToText, folder, dtype=torch.float32)
    every = [name for name, _ in network.named_parameters()]
    assert any(map(APART.search, every))
    found = trained(with_method(network, settings(method)))
    assert found
    assert [name for name in found if APART.search(name)] == []
    if method == "full":
        assert found == [name for name in every if not APART.search(name)]


def test_a_resumed_epoch_has_its_own_order_and_the_blank_rows_last() -> None:
    """The sampler is new after a resumption, and accelerate does not tell it the epoch."""
    rows = Filled([{"input_ids": [at]} for at in range(10)], 4)
    epochs = [list(FilledSampler(rows, 0, lambda epoch=epoch: epoch)) for epoch in (0, 3)]  # type: ignore[misc]
    alone = SeedableRandomSampler(range(10), data_seed=0)
    orders = [list(alone) for _ in range(4)]  # each pass is the next epoch
    assert epochs == [[*orders[0], 10, 11], [*orders[3], 10, 11]]
    assert orders[0] != orders[3]
