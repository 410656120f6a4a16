"""Mixture-of-experts weights in two layouts, one tensor per expert or all experts in one, mapped row by row.

weights/families.py describes the two.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from shadowft_core.weights import SINGLE_EXPERTS

_PART = {getattr(names, part): part for names in SINGLE_EXPERTS for part in ("gate", "up", "down")}
_EXPERT = re.compile(rf"(.+)\.experts\.(\d+)\.({'|'.join(_PART)})\.weight")
_FUSED = re.compile(r"(.+)\.experts\.(gate_up_proj|down_proj)(?:\.weight)?")
_ROUTER = re.compile(r"(.+\.(?:block_sparse_moe|mlp))\.gate\.weight")


class Place(NamedTuple):
    """Rows (vectors along the last axis) of a tensor."""

    tensor: str
    first: int
    rows: int
    width: int


def is_mixture(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_EXPERT, _FUSED, _ROUTER))


def places(name: str, shape: tuple[int, ...]) -> dict[tuple[str, ...], Place]:
    """Where each matrix of a mixture lies in this tensor, by (block, expert, part); empty for any other tensor."""
    if match := _EXPERT.fullmatch(name):
        block, expert, part = match.groups()
        return {(_block(block), expert, _PART[part]): _place(name, shape, 0, 1)} if len(shape) == 2 else {}
    if match := _ROUTER.fullmatch(name):
        return {(_block(match[1]), "router"): _place(name, shape, 0, 1)} if len(shape) == 2 else {}
    match = _FUSED.fullmatch(name)
    if match is None or len(shape) != 3:
        return {}
    block, parts = _block(match[1]), ("gate", "up") if match[2] == "gate_up_proj" else ("down",)
    if shape[1] % len(parts):
        return {}
    count = shape[0] * len(parts)
    return {
        (block, str(number // len(parts)), parts[number % len(parts)]): _place(name, shape, number, count)
        for number in range(count)
    }


def all_places(tensors: Mapping[str, tuple[int, ...]]) -> dict[tuple[str, ...], Place]:
    found: dict[tuple[str, ...], Place] = {}
    for name, shape in tensors.items():
        found |= places(name, shape)
    return found


def kind(name: str) -> str:
    """A tensor's name as it is in the fused layout: the same for all experts, and for both layouts."""
    if match := _EXPERT.fullmatch(name):
        part = "down_proj" if _PART[match[3]] == "down" else "gate_up_proj"
        return f"{_block(match[1])}.experts.{part}"
    if match := _FUSED.fullmatch(name):
        return f"{_block(match[1])}.experts.{match[2]}"
    if match := _ROUTER.fullmatch(name):
        return f"{_block(match[1])}.gate.weight"
    return name


def experts(tensors: Mapping[str, tuple[int, ...] | None]) -> dict[str, set[int]]:
    """The experts of every block; a fused tensor of unknown shape tells of none."""
    found: dict[str, set[int]] = {}
    for name, shape in tensors.items():
        if match := _EXPERT.fullmatch(name):
            found.setdefault(_block(match[1]), set()).add(int(match[2]))
        elif (match := _FUSED.fullmatch(name)) and shape:
            found.setdefault(_block(match[1]), set()).update(range(shape[0]))
    return found


def _block(name: str) -> str:
    return re.sub(r"\.block_sparse_moe$", ".mlp", name)


def _place(name: str, shape: tuple[int, ...], number: int, count: int) -> Place:
    rows = (shape[0] if len(shape) == 2 else shape[0] * shape[1]) // count
    return Place(name, number * rows, rows, shape[-1])
