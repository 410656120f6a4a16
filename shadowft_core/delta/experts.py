"""Factors on the fused weights of a mixture of experts, given back to the tensors as the Base stores them.

The loaded model holds `experts.gate_up_proj` and `experts.down_proj`, (experts, outputs, inputs) each, and PEFT adapts
them as whole parameters: A is (experts * rank, inputs) with an expert's rows together, B is (outputs, rank * experts)
with the expert running fastest (ParamWrapper.get_delta_weight). A folder may hold one tensor per expert and matrix.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from shadowft_core.checkpoint import SINGLE_EXPERTS
from shadowft_core.delta.lora import Factors
from shadowft_core.delta.merge import Change
from shadowft_core.errors import AdapterError

if TYPE_CHECKING:
    from shadowft_core.delta.adapters import Adapter

_MATRICES = {  # by fused parameter, the matrices it is made of, as each family calls them
    "gate_up_proj": tuple((names.gate, names.up) for names in SINGLE_EXPERTS),
    "down_proj": tuple((names.down,) for names in SINGLE_EXPERTS),
}


def fused_name(name: str) -> str:
    """The parameter of the loaded model that holds a stored tensor: of an expert's matrix, the fused one."""
    if found := re.fullmatch(r"(.+\.experts)\.\d+\.(\w+)\.weight", name):
        for parameter, layouts in _MATRICES.items():
            if any(found[2] in layout for layout in layouts):
                return f"{found[1].replace('.block_sparse_moe.', '.mlp.')}.{parameter}"
    return name


def split_experts(adapter: "Adapter", module: str, keys: dict[str, str]) -> dict[str, Change]:
    """Changes by tensor name of the Base. Raises AdapterError when no experts of these shapes are there."""
    holder = module
    while holder.endswith(".base_layer"):  # one wrapper in another, one for each adapted parameter
        holder = holder.removesuffix(".base_layer")
    if set(keys) == {"A", "B"}:
        for parameter in _MATRICES:
            if adapter.settings.targets_parameter(f"{holder}.{parameter}"):
                found = _stacked(adapter, holder, parameter, keys) or _separate(adapter, holder, parameter, keys)
                if found:
                    return found
    raise AdapterError(
        f"{adapter.source}: adapts {module}, and {adapter.before.path} holds neither its weight nor experts of its "
        "shapes; pass the model it was trained on, or merge the adapter (PEFT merge_and_unload) and pass the result"
    )


def _stacked(adapter: "Adapter", holder: str, parameter: str, keys: dict[str, str]) -> dict[str, Change]:
    """One tensor of all experts: no matrix, so its delta is given expert by expert."""
    name = adapter.stored(f"{holder}.{parameter}")
    if name not in adapter.before or len(shape := adapter.before.info(name).shape) != 3:
        return {}
    rank, scaling = adapter.settings.rank_and_scaling(f"{holder}.{parameter}")
    count, rows, columns = shape
    straight, turned = (_fits(adapter, keys, count * rank, *sides) for sides in ((columns, rows), (rows, columns)))
    if straight and turned:
        raise AdapterError(
            f"{adapter.source}: {name} is square, {shape}: which side is the input stands in no file; "
            "merge the adapter (PEFT merge_and_unload) and pass the result"
        )
    if not (straight or turned):
        return {}
    adapter.require_float(name)

    def delta(expert: int) -> np.ndarray:
        left, right = (get() for get in _pair(adapter, keys, rank, count, expert, slice(None)))
        product: np.ndarray = scaling * (left.astype(np.float64) @ right)
        return product if straight else product.T

    return {name: Change(stacked=delta)}


def _separate(adapter: "Adapter", holder: str, parameter: str, keys: dict[str, str]) -> dict[str, Change]:
    """A tensor for every expert and matrix: each gets its own factors."""
    rank, scaling = adapter.settings.rank_and_scaling(f"{holder}.{parameter}")
    for matrices in _MATRICES[parameter]:
        names: list[list[str]] = []
        while (row := [adapter.stored(f"{holder}.{len(names)}.{m}.weight") for m in matrices])[0] in adapter.before:
            names.append(row)
        if not names or not all(name in adapter.before for row in names for name in row):
            continue
        shapes = [adapter.before.info(name).shape for name in names[0]]
        outputs = sum(shape[0] for shape in shapes)
        if not _fits(adapter, keys, len(names) * rank, shapes[0][-1], outputs):
            return {}
        found: dict[str, Change] = {}
        for expert, row in enumerate(names):
            start = 0
            for name, shape in zip(row, shapes, strict=True):
                adapter.require_float(name)
                left, right = _pair(adapter, keys, rank, len(names), expert, slice(start, start + shape[0]))
                found[name] = Change(factors=Factors(rank, scaling, left, right))
                start += shape[0]
        return found
    return {}


def _fits(adapter: "Adapter", keys: dict[str, str], width: int, inputs: int, outputs: int) -> bool:
    found = [adapter.weights.info(keys[factor]).shape for factor in "AB"]
    return found == [(width, inputs), (outputs, width)]


def _pair(
    adapter: "Adapter", keys: dict[str, str], rank: int, count: int, expert: int, outputs: slice
) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray]]:
    def left() -> np.ndarray:
        whole: np.ndarray = adapter.read_again(keys["B"])
        mine: np.ndarray = whole.reshape(-1, rank, count)[outputs, :, expert]
        return mine

    def right() -> np.ndarray:
        whole: np.ndarray = adapter.read_again(keys["A"])
        mine: np.ndarray = whole.reshape(count, rank, -1)[expert]
        return mine

    return left, right
