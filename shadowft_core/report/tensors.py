"""How far a graft moved the weights, by layer and module, from its receipt."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OUTSIDE = "–"  # the layer of embedding, head and what else stands outside of the layers


@dataclass(frozen=True)
class Grid:
    """Norm of delta over norm of weight by (layer, module); a pair that was not grafted is absent."""

    layers: list[str]
    modules: list[str]
    cells: dict[tuple[str, str], float]


def grid(receipt: Mapping[str, Any]) -> Grid:
    """The grid of a receipt.json. Tensors of one layer and module, such as the experts, are taken together."""
    squares: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, norms in (receipt.get("grafted") or {}).items():
        sums = squares[place(name)]
        sums[0] += norms["delta_norm"] ** 2
        sums[1] += norms["weight_norm"] ** 2
    cells = {at: math.sqrt(delta / weight) for at, (delta, weight) in squares.items() if weight}
    layers = sorted(
        {layer for layer, _ in cells}, key=lambda layer: (layer == OUTSIDE, int(layer) if layer != OUTSIDE else 0)
    )
    return Grid(layers, list(dict.fromkeys(module for _, module in sorted(cells, key=_by_place))), cells)


def place(tensor: str) -> tuple[str, str]:
    """(layer, module) of a tensor: `model.layers.3.self_attn.q_proj.weight` is ("3", "q_proj").

    The layer is the first number in the name, the module the last word before `weight` that is no number. A bias is a
    module of its own.
    """
    words = tensor.split(".")
    layer = next((word for word in words if word.isdecimal()), OUTSIDE)
    last = words.pop() if words[-1] in ("weight", "bias") and len(words) > 1 else ""
    module = next((word for word in reversed(words) if not word.isdecimal()), tensor)
    return layer, f"{module} bias" if last == "bias" else module


def largest(receipt: Mapping[str, Any] | None, count: int) -> list[tuple[str, Mapping[str, Any]]]:
    """The grafted tensors with the largest delta relative to the weight."""
    grafted = (receipt or {}).get("grafted") or {}

    def share(of: tuple[str, Mapping[str, Any]]) -> tuple[float, str]:
        name, norms = of
        return -norms["delta_norm"] / (norms["weight_norm"] or 1.0), name

    return sorted(grafted.items(), key=share)[:count]


def _by_place(at: tuple[str, str]) -> tuple[int, str]:
    order = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")
    return (order.index(at[1]) if at[1] in order else len(order)), at[1]
