"""The two layouts in which the experts of a mixture are stored. Both have the same matrices.

- One by one, a matrix each: `experts.N.gate_proj|up_proj|down_proj.weight`, or Mixtral's `w1|w3|w2`.
- Fused, all in one tensor: `experts.gate_up_proj` (experts, 2 * intermediate, hidden), gate above up, and
  `experts.down_proj` (experts, hidden, intermediate), so that each matrix is one run of bytes.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from shadowft_core.weights.families.table import table

FUSED_PARTS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
"""the parts that a fused parameter joins along the rows"""
Slot = tuple[str, ...]
"""(block, expert, part) of one matrix, or (block, "router"); in both layouts, blocks have their fused name"""


class Storage(NamedTuple):
    """How a stack of experts, one parameter in memory, is stored in files."""

    turned: bool
    """in memory a matrix is (inputs, outputs), as PEFT reads it"""
    parts: tuple[str, ...] = ()
    """names of the matrices stored one by one, in the order in which their outputs are joined; empty when fused"""
    transposed: bool = False
    """in files every matrix is the transpose of the one in memory"""


class ExpertNames(NamedTuple):
    """How experts that are stored one by one are named: their block (`.mlp.` when fused) and each part."""

    block: str
    gate: str
    up: str
    down: str

    def name(self, slot: Slot) -> str:
        """The name of a matrix that is stored separately, in a block with its fused name."""
        if len(slot) == 2:
            return f"{slot[0]}.gate.weight"
        block, expert, part = slot
        return f"{block}.experts.{expert}.{getattr(self, part)}.weight"


class View(NamedTuple):
    """Consecutive rows of a tensor and the shape they form. A row is a vector along the last axis."""

    tensor: str
    first: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def start(self) -> int:
        """The first flat element."""
        return self.first * (self.shape[-1] if self.shape else 1)


def _names_of(entry: Mapping[str, Any]) -> ExpertNames | None:
    ways = entry.get("experts", {})
    parts = [part for parameter in FUSED_PARTS for part in ways.get(parameter, {}).get("parts", ())]
    if len(parts) != 3:
        return None
    blocks = [theirs for ours, theirs in entry.get("files", []) if re.search(r"\.mlp(\.router)?$", ours)]
    block = ".block_sparse_moe." if any(".block_sparse_moe" in name for name in blocks) else ".mlp."
    return ExpertNames(block, *parts)


EXPERT_NAMES = {kind: way for kind, name in table()["types"].items() if (way := _names_of(table()["classes"][name]))}
"""by model type, for the families with the fused layout above; others interleave or transpose their experts"""
KNOWN_NAMES = tuple(sorted(set(EXPERT_NAMES.values())))
_PART = {getattr(names, part): part for names in KNOWN_NAMES for part in ("gate", "up", "down")}
SINGLE = re.compile(r"(.+\.experts)\.\d+\.(\w+)\.weight")
_EXPERT = re.compile(rf"(.+)\.experts\.(\d+)\.({'|'.join(_PART)})\.weight")
_FUSED = re.compile(rf"(.+)\.experts\.({'|'.join(FUSED_PARTS)})(?:\.weight)?")
_ROUTER = re.compile(r"(.+\.(?:block_sparse_moe|mlp))\.gate\.weight")
_NUMBER = re.compile(r"\.experts\.\d+\.")


def fused_block(name: str) -> str:
    """The name with the block named as in the fused layout (`.mlp`)."""
    return re.sub(r"\.block_sparse_moe(?=\.|$)", ".mlp", name)


def single_block(name: str) -> str:
    """The name with the block named as in Mixtral (`.block_sparse_moe`), which stores experts one by one."""
    return name.replace(".mlp.", ".block_sparse_moe.")


def is_fused(name: str) -> bool:
    """Whether a tensor holds all experts of a block in the fused layout."""
    return _FUSED.fullmatch(name) is not None


def is_single(name: str) -> bool:
    """Whether a tensor belongs to one expert."""
    return _NUMBER.search(name) is not None


def all_experts(name: str) -> str:
    """The name with `*` for the number of the expert."""
    return _NUMBER.sub(".experts.*.", name)


def views(name: str, shape: tuple[int, ...]) -> dict[Slot, View]:
    """The matrices of a mixture that a tensor holds; empty for any other tensor."""
    if match := _EXPERT.fullmatch(name):
        slot: Slot = (fused_block(match[1]), match[2], _PART[match[3]])
        return {slot: View(name, 0, shape)} if len(shape) == 2 else {}
    if match := _ROUTER.fullmatch(name):
        return {(fused_block(match[1]), "router"): View(name, 0, shape)} if len(shape) == 2 else {}
    match = _FUSED.fullmatch(name)
    parts = FUSED_PARTS[match[2]] if match else ()
    if match is None or len(shape) != 3 or shape[1] % len(parts):
        return {}
    block, rows = fused_block(match[1]), shape[1] // len(parts)
    return {
        (block, str(number // len(parts)), parts[number % len(parts)]): View(name, number * rows, (rows, shape[2]))
        for number in range(shape[0] * len(parts))
    }


def all_views(tensors: Mapping[str, tuple[int, ...]]) -> dict[Slot, View]:
    """`views` of every tensor, given by name and shape."""
    return {slot: view for name, shape in tensors.items() for slot, view in views(name, shape).items()}


def fused_name(name: str) -> str:
    """The name of a tensor in the fused layout: the same for all experts, and for both layouts."""
    if match := _EXPERT.fullmatch(name):
        part = next(fused for fused, parts in FUSED_PARTS.items() if _PART[match[3]] in parts)
        return f"{fused_block(match[1])}.experts.{part}"
    if match := _FUSED.fullmatch(name):
        return f"{fused_block(match[1])}.experts.{match[2]}"
    return fused_block(name) if _ROUTER.fullmatch(name) else name


def expert_numbers(tensors: Mapping[str, tuple[int, ...] | None]) -> dict[str, set[int]]:
    """The expert numbers of each block; a fused tensor of unknown shape adds none."""
    found: dict[str, set[int]] = {}
    for name, shape in tensors.items():
        if match := _EXPERT.fullmatch(name):
            found.setdefault(fused_block(match[1]), set()).add(int(match[2]))
        elif (match := _FUSED.fullmatch(name)) and shape:
            found.setdefault(fused_block(match[1]), set()).update(range(shape[0]))
    return found
