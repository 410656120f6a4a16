"""The expected graft, computed in torch alone from models as transformers loads them, without our table."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shadowft_core.weights.families.table import table
from tests.families.tiny import config_of

THREE = ("base", "tuned", "instruct")


def start(model_type: str, dtype: str, **settings: Any) -> Any:
    """A tiny model of the class that the table names for a type, random, float32 where the class keeps that."""
    import torch
    import transformers

    kind = getattr(transformers, table()["types"][model_type])
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        torch.manual_seed(0)
        kind._from_config(config_of(model_type, **settings), dtype=getattr(torch, dtype)).save_pretrained(folder)
        model = kind.from_pretrained(folder, dtype="auto")
        _move(model, _values(model), 0.5)
    return model


def save_three(folder: Path, model_type: str) -> None:
    """`base`, `tuned` and `instruct` under `folder`, bfloat16, as save_pretrained writes them: every floating tensor
    of the state dict, norms and buffers too, differs between any two."""
    import torch

    model = start(model_type, "bfloat16")
    model.save_pretrained(folder / "base")
    base = _values(model)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, step in (("tuned", 0.1), ("instruct", 0.2)):
            _move(model, base, step)
            model.save_pretrained(folder / name)


def _values(model: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _move(model: Any, values: dict[str, Any], step: float) -> None:
    """Set every tensor to that of `values` plus noise in proportion to it; zeros get noise too."""
    import torch

    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            tensor.copy_(values[name] + step * (0.02 + values[name].abs()) * torch.randn(tensor.shape))


def load(folder: Path) -> Any:
    """The model that config.json names. Requires that no warning appears and that every key is found and used."""
    import transformers

    kind = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(info.values()), f"{folder.name} loads with {info}"
    return model


def differing(folder: Path, moved: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Names in `grafted` whose bits are not those of the float32 sum of base, tuned and instruct, cast once; where
    `moved` says no, of instruct. Every tensor of the loaded models counts, tied ones under both names."""
    import torch

    base, tuned, instruct, grafted = (load(folder / name).state_dict() for name in (*THREE, "grafted"))
    assert base.keys() == tuned.keys() == instruct.keys() == grafted.keys()
    wrong = []
    for name, own in instruct.items():
        want = own
        if own.is_floating_point() and moved(name):
            want = (own.float() + (tuned[name].float() - base[name].float())).to(own.dtype)
            assert own.numel() == 0 or not torch.equal(want, own), f"{name} shows no delta"
        if not torch.equal(grafted[name], want):
            wrong.append(name)
    return wrong


def linear_parameters(model: Any) -> set[str]:
    """Names of what `linear` means: weights and biases of nn.Linear, Conv1D, nn.MultiheadAttention and stacks of
    experts, but for the head and the routers."""
    import torch
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    parts = [part for _, part in model.named_modules() if isinstance(part, PreTrainedModel)]
    heads = [part.get_output_embeddings() for part in parts]
    routers = [prefix for prefix, module in model.named_modules() if "Router" in type(module).__name__]
    found = set()
    for prefix, module in model.named_modules():
        kind, leaf = type(module).__name__, prefix.rpartition(".")[2]
        router = any(f"{prefix}.".startswith(f"{one}.") for one in routers)
        if module in heads or router or leaf in ("router", "gate") or kind.endswith("Gate"):
            continue
        matrix = isinstance(module, torch.nn.Linear | Conv1D | torch.nn.MultiheadAttention)
        stack = "Experts" in kind
        for name, tensor in module.named_parameters(recurse=False):
            if matrix or (stack and tensor.ndim >= 2):
                found.add(f"{prefix}.{name}")
    return found
