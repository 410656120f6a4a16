"""NaN or infinite logits end the arm, whatever the kind of task, and the error says what is to blame."""

import time
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import load_folder
from shadowft_core.evaluate.engines.finite import NotFinite, cause, watch
from shadowft_core.evaluate.engines.hf import Hf
from shadowft_core.rendering import load_tokenizer
from shadowft_core.weights import open_checkpoint, write_checkpoint
from tests.fixtures.evaluation import World, score_instruct

TENSOR = "model.layers.1.mlp.down_proj.weight"


def damaged(world: World, folder: Path, tensor: str, value: float, scale: float = 1.0) -> World:
    """The world with one value of one tensor changed, and the tensor multiplied."""
    import shutil
    from dataclasses import replace

    shutil.copytree(world.instruct, folder)
    (folder / "model.safetensors").unlink()
    model = open_checkpoint(world.instruct)

    def tensors() -> Any:
        for name in model.names:
            array = model.read(name).copy()
            if name == tensor:
                array *= scale
                array.reshape(-1)[0] += value
            yield name, array

    write_checkpoint(folder, tensors())
    return replace(world, instruct=folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("domain", ["next", "choice", "heldout"])
def test_a_damaged_weight_ends_every_kind_of_task(world: World, tmp_path: Path, domain: str, value: float) -> None:
    broken = damaged(world, tmp_path / "broken", TENSOR, value)
    with pytest.raises(EvaluationError) as caught:
        score_instruct(broken, tmp_path / "out", domain=(domain,), guards=())
    said = str(caught.value)
    assert f"weight tensor {TENSOR} has 1 of 2048 values that are NaN or infinite" in said
    assert f"task {domain}, item sha256:" in said
    assert "\n" not in said
    assert len(said) <= 1000
    assert not (tmp_path / "out").exists()


def test_the_item_is_named(world: World, tmp_path: Path) -> None:
    """One token has a damaged row of the embedding, so one item alone meets it."""
    tokenizer = load_tokenizer(world.instruct)
    model = load_folder(world.instruct)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("f")] = float("nan")
    lm = Hf(world.instruct, tokenizer, 64).lm(model)
    for prompt in ("<user> say c <end> <bot> ", "<user> say f <end> <bot> "):
        request = [_request(prompt)]
        if " f " not in prompt:
            assert lm.generate_until(request)
            continue
        with pytest.raises(
            NotFinite, match=r"logits after .*say f <end> <bot>.*embed_tokens.weight has 32 of"
        ) as caught:
            lm.generate_until(request)
        assert tokenizer.decode(caught.value.ids).split() == prompt.split()


def test_a_padded_batch_names_the_row_without_its_padding(world: World) -> None:
    tokenizer = load_tokenizer(world.instruct)
    model = load_folder(world.instruct)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("f")] = float("nan")
    lm = Hf(world.instruct, tokenizer, 64).lm(model)
    with pytest.raises(NotFinite) as caught:
        lm.generate_until([_request("<user> say a b c d <end> <bot> "), _request("<user> say f <end> <bot> ")])
    assert tokenizer.decode(caught.value.ids).split() == ["<user>", "say", "f", "<end>", "<bot>"]


def _request(prompt: str) -> Any:
    from lm_eval.api.instance import Instance

    kwargs = {"until": ["<end>"], "max_gen_toks": 3, "do_sample": False}
    return Instance("generate_until", {}, (prompt, kwargs), 0)


def test_finite_weights_that_overflow_name_the_module(world: World, tmp_path: Path) -> None:
    """All weights are finite, but a product of two layers is beyond float32."""
    broken = damaged(world, tmp_path / "broken", "model.layers.1.mlp.up_proj.weight", 0, 3e38)
    with pytest.raises(EvaluationError, match=r"all weights are finite, the output of model\.layers\.1\.mlp\.up_proj"):
        score_instruct(broken, tmp_path / "out")


def test_the_cause_in_a_healthy_model_is_not_invented(world: World) -> None:
    model = load_folder(world.instruct)
    ids = load_tokenizer(world.instruct)("<user> say a <end> <bot>", return_tensors="pt")["input_ids"]
    assert "it does not happen to this prompt alone" in cause(model, ids)


def test_large_logits_are_not_refused(world: World) -> None:
    """Their sum overflows, each of them does not."""
    import torch

    model = watch(load_folder(world.instruct), load_tokenizer(world.instruct))
    head = model.get_output_embeddings().weight
    head.data *= 1e37 / head.data.abs().max()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[1, 5, 7, 3, 2] * 6])).logits
    assert torch.isfinite(logits).all()
    assert not torch.isfinite(logits.abs().sum(dtype=torch.float32))


def test_watching_twice_is_watching_once(world: World) -> None:
    model, tokenizer = load_folder(world.instruct), load_tokenizer(world.instruct)
    watch(watch(model, tokenizer), tokenizer)
    assert len(model._forward_hooks) == 1


def test_watching_costs_little(world: World) -> None:
    """The check of the logits against a forward pass of a model with the vocabulary of SmolLM2, alone and paired."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(1)
    config = Qwen3Config(
        vocab_size=49152, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=48,
    )  # fmt: skip
    model, ids = Qwen3ForCausalLM(config).eval(), torch.arange(256)[None].repeat(2, 1)
    handle = watch(model, load_tokenizer(world.instruct))._shadowft_finite
    hook = next(iter(model._forward_hooks.values()))
    handle.remove()
    passes, checks = [], []
    with torch.no_grad():
        for _ in range(5):
            start = time.perf_counter()
            output = model(input_ids=ids)
            passes.append(time.perf_counter() - start)
            start = time.perf_counter()
            hook(model, (), {"input_ids": ids}, output)
            checks.append(time.perf_counter() - start)
    assert min(checks) < 0.1 * min(passes)  # four layers; thirty take eight times as long


def test_a_server_that_returns_nan_is_refused(world: World, tmp_path: Path) -> None:
    from shadowft_core.evaluate.questions import finite

    finite("t", "sha256:1", -3.0)
    for value in (float("nan"), float("-inf")):
        with pytest.raises(EvaluationError, match=f"task t: the log-likelihood of item sha256:1 is {value}"):
            finite("t", "sha256:1", value)
