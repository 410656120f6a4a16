"""Keeps frozen weights in the dtype of the checkpoint, and computes with them as if they were float32.

Every value of bfloat16 and float16 is a value of float32. So a product with the stored weight, cast for the product
alone, has the bits of a product with a float32 copy; only the copy is saved. Where autocast is on, the product casts
both factors to its own dtype, and the float32 copy would only be cast back.
"""

import copy
from collections.abc import Collection
from typing import Any

import accelerate
import torch
from torch import nn
from torch.nn import functional

from shadowft_core.weights import Checkpoint

_HALVES = {"BF16": torch.bfloat16, "F16": torch.float16}


class _Product(torch.autograd.Function):  # type: ignore[misc]  # torch is not typed
    """`x @ weight.T + bias` in the dtype of `x`. Saves the stored weight for backward, not its cast copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return functional.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        (grad,), (weight,) = grads, ctx.saved_tensors
        return (grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None), None, None


class FrozenLinear(nn.Linear):  # type: ignore[misc]
    """A frozen linear layer, whose weight has 16 bits and whose output has the dtype of the input."""

    compute_dtype = torch.float32  # PEFT makes adapters in it; in the weight's dtype their start would be rounded

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(input.device.type) or input.dtype == self.weight.dtype:
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)


class FrozenEmbedding(nn.Embedding):  # type: ignore[misc]
    """A frozen embedding with weights of 16 bits and a float32 output."""

    compute_dtype = torch.float32

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).float()


_FROZEN = {nn.Linear: FrozenLinear, nn.Embedding: FrozenEmbedding}


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype to load the model in: bfloat16 or float16 if all tensors have it, else float32.

    A mixed checkpoint is loaded in float32, because loading it in 16 bits would round its float32 tensors.
    """
    names = {checkpoint.info(name).dtype for name in checkpoint.names}
    return _HALVES.get(names.pop(), torch.float32) if len(names) == 1 else torch.float32


def keep_narrow(network: Any, excluded: Collection[str] = (), vocabulary: bool = True) -> None:
    """Let the model compute in float32 with frozen weights of 16 bits.

    Plain linear layers and embeddings keep 16 bits; a linear layer in float32 gets them back if no bit is lost (a mixed
    checkpoint). Everything else becomes float32: norms, biases, convolutions, the experts of an expert layer (one
    3-d parameter, which their kernels multiply without autocast), and embeddings of another class, which may scale in
    the weight's dtype. So do modules whose name ends in one of `excluded`, and, without `vocabulary`, embedding and
    head, because their rows will be changed.

    Call it before PEFT wraps the layers. All weights must stay frozen.
    """
    vocabulary_modules = [] if vocabulary else [network.get_input_embeddings(), network.get_output_embeddings()]
    narrow, wide = [], {id(parameter) for module in vocabulary_modules if module for parameter in module.parameters()}
    for name, module in network.named_modules():
        whole = any(f".{name}.".endswith(f".{end}.") or f".{end}." in f".{name}." for end in excluded)
        weight = getattr(module, "weight", None)
        if type(module) in _FROZEN and not whole and id(weight) not in wide:
            narrow.append(module)
            others = (p for key, p in module.named_parameters(recurse=False) if key != "weight")
        else:
            others = module.parameters(recurse=False)
        wide |= {id(parameter) for parameter in others}
    seen = set()
    for module in narrow:
        weight = module.weight
        if id(weight) in wide:  # tied to a module that needs float32
            continue
        if weight.dtype == torch.float32 and id(weight) not in seen:
            weight.data = _narrowed(weight.data)
        if weight.dtype in _HALVES.values():
            module.__class__ = _FROZEN[type(module)]
            seen.add(id(weight))
    for parameter in network.parameters():
        if parameter.dtype in _HALVES.values() and id(parameter) not in seen:
            parameter.data = parameter.data.float()
    _make_buffers_again(network)


def frozen_bytes_saved(network: Any) -> int:
    """The bytes by which the frozen weights are smaller than in float32."""
    weights = {id(m.weight): m.weight for m in network.modules() if isinstance(m, FrozenLinear | FrozenEmbedding)}
    return sum(weight.nbytes for weight in weights.values())


def _make_buffers_again(network: Any) -> None:
    """Replace buffers that loading in 16 bits has rounded. They are constants, such as Gemma's scale of embeddings."""
    rounded = [name for name, buffer in network.named_buffers() if buffer.dtype in _HALVES.values()]
    if not rounded:
        return
    config = copy.deepcopy(network.config)
    parts = [config]
    for part in parts:  # each part of the model is made in the dtype of its config
        part.dtype = torch.float32
        parts += [inner for name in part.sub_configs if (inner := getattr(part, name, None)) is not None]
    with accelerate.init_empty_weights(include_buffers=False):
        made = dict(type(network)(config).named_buffers())
    for name in rounded:
        buffer = network.get_buffer(name)
        buffer.data = made[name].to(buffer.device, torch.float32)


def _narrowed(weight: torch.Tensor) -> torch.Tensor:
    """The values in 16 bits if that changes none of them, else the tensor itself."""
    for dtype in _HALVES.values():
        if all(torch.equal(part.to(dtype).float(), part) for part in (weight[:1], weight)):
            return weight.to(dtype)
    return weight
