"""Which weights of the Base belong to which of the Instruct, whatever the layout of either file.

Mostly a tensor belongs to the tensor of its name. Rows of embeddings and heads belong together by token id. Experts
are stored one by one or fused (weights/families.py); where the two sides differ, the fused side is cut into experts.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shadowft_core.errors import PairError
from shadowft_core.pair.tokens import Run, Vocabularies
from shadowft_core.weights import EXPERTS, Checkpoint, by_reason, remedy, require_met, require_one_sided

_EXPERT = re.compile(r"\.experts\.\d+\.")
_FUSED = re.compile(r"(?P<block>.*\.experts)\.(?P<part>gate_up_proj|down_proj)")


@dataclass(frozen=True)
class View:
    """Some neighbouring weights of a tensor of a file, in a shape of their own."""

    tensor: str
    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Span:
    """Weights of both sides that belong together: tensor and first flat element on either side, and their number."""

    base: str
    base_start: int
    instruct: str
    instruct_start: int
    size: int


@dataclass(frozen=True)
class Match:
    """All that is measured under one name; the experts of a layer stand together, as `experts.*`."""

    name: str
    spans: list[Span]
    matrix: bool

    @property
    def size(self) -> int:
        return sum(span.size for span in self.spans)


def match(
    base: Checkpoint,
    instruct: Checkpoint,
    found: Vocabularies,
    ignore: Sequence[str] = (),
    standing: Sequence[str] = (),
) -> tuple[list[Match], list[str], list[str]]:
    """All matches, reasons to refuse and warnings. Reads no weights.

    `ignore` are patterns, by hand, of tensors that only one side holds; `standing` those of params.yaml, which may meet
    nothing here, or what both hold. Raises InputError for one of `ignore` that does.

    Raises PairError when experts are stored in two ways that only the code of that model could convert.
    """
    ours, theirs = _views(base), _views(instruct)
    ours = {_placed(name, base, instruct, theirs): view for name, view in ours.items()}
    warned, refused = _drop_heads(base, ours, instruct, theirs), []
    if (fused := _is_fused(ours)) != _is_fused(theirs) and _has_experts(ours) and _has_experts(theirs):
        ours, theirs = (_experts(side, instruct) for side in (ours, theirs))
        ways = ("fused", "one by one") if fused else ("one by one", "fused")
        warned.append(f"the experts are stored {ways[0]} in the Base, {ways[1]} in the Instruct; compared by expert")
    both, where = ours.keys() & theirs.keys(), f"{base.path} and {instruct.path}"
    require_one_sided(ignore, both, where)
    alone = {"Base": [n for n in ours if n not in both], "Instruct": [n for n in theirs if n not in both]}
    left, ignored = by_reason(alone, [*ignore, *standing], lambda _: False, instruct.family.title)
    unloaded = {
        role: [n for n in m.names if m.family.ignores(n)] for role, m in (("Base", base), ("Instruct", instruct))
    }
    require_met(ignore, ignored | {"": unloaded}, where)
    for reason, sides in ignored.items():
        warned += [f"{len(names)} tensors stand only in the {side}, {reason}" for side, names in sides.items()]
    for side, names in left.items():
        waiver = remedy(left, both) if side == list(left)[-1] else ""
        refused.append(f"{len(names)} tensors stand only in the {side}, the first is {names[0]}{waiver}")
    spans: dict[str, list[Span]] = {}
    matrices: dict[str, bool] = {}
    misshapen: list[str] = []
    for name, their in theirs.items():
        our = ours.get(name)
        if our is None:
            continue
        token_rows = instruct.family.has_token_rows(name, their.shape)
        if our.shape == their.shape and not (token_rows and found.base != found.instruct):
            runs: list[Run] = [(0, 0, 1)]
        elif token_rows and our.shape[1:] == their.shape[1:]:
            runs = found.runs(our.shape[0], their.shape[0])
            if our.shape != their.shape:
                kept = their.shape[0] - sum(count for _, _, count in runs)
                warned.append(
                    f"{name} has {our.shape[0]} rows in the Base, {their.shape[0]} in the Instruct; {kept} rows "
                    "have no counterpart and stay the Instruct's"
                )
        else:
            misshapen.append(name)
            continue
        key = _EXPERT.sub(".experts.*.", name)
        unit = their.size if runs == [(0, 0, 1)] else math.prod(their.shape[1:])
        matrices[key] = len(their.shape) > 1
        spans.setdefault(key, []).extend(
            Span(our.tensor, our.start + b * unit, their.tensor, their.start + i * unit, n * unit) for b, i, n in runs
        )
    if misshapen:
        name = misshapen[0]
        shapes = f"{ours[name].shape} in the Base, {theirs[name].shape} in the Instruct"
        refused.append(f"{len(misshapen)} shapes differ, the first is {name}: {shapes}")
    return [Match(name, parts, matrices[name]) for name, parts in spans.items()], refused, warned


def head(model: Checkpoint) -> str | None:
    """The head that has weights of its own: neither tied to the embedding nor left out of the file."""
    return next((name for name in model.names if model.family.is_head(name) and model.home(name) == name), None)


def _views(model: Checkpoint) -> dict[str, View]:
    """Every tensor that is not a tied copy, by its name; one that stands for tied ones, by the embedding's."""
    own = [name for name in model.names if model.home(name) == name and not model.family.ignores(name)]
    called: dict[str, str] = {}
    for alias, home in model.ties.items():
        called[home] = min(filter(model.family.is_embedding, (alias, home, called.get(home, home))), default=home)
    return {called.get(name, name): View(name, 0, model.info(name).shape) for name in own}


def _placed(name: str, base: Checkpoint, instruct: Checkpoint, theirs: Mapping[str, View]) -> str:
    """The Instruct's name for a tensor of the Base, where the two were saved in different ways."""
    here = None if name in theirs else instruct.named(name, base.family)
    return here if here is not None and here in theirs else name


def _drop_heads(base: Checkpoint, ours: dict[str, View], instruct: Checkpoint, theirs: dict[str, View]) -> list[str]:
    """Leave the head out when only one side has one of its own, and the other does not say it should have one."""
    heads = [next(filter(model.family.is_head, side), None) for model, side in ((base, ours), (instruct, theirs))]
    if (heads[0] is None) == (heads[1] is None):
        return []
    tied, own, without = ("Instruct", "Base", instruct) if heads[0] else ("Base", "Instruct", base)
    if not without.ties:
        return []  # its head was lost, and is missed by name
    for side, name in zip((ours, theirs), heads, strict=True):
        if name:
            del side[name]
    return [f"the head is tied to the embedding in the {tied}, not in the {own}; sigma leaves it out"]


def language_setting(model: Checkpoint, key: str) -> Any:
    """A config field of the language model: of `text_config` where there is one and the config itself has none."""
    text = model.config.get("text_config")
    return model.config.get(key, text.get(key) if isinstance(text, dict) else None)


def _has_experts(side: Mapping[str, View]) -> bool:
    return _is_fused(side) or any(_EXPERT.search(name) for name in side)


def _is_fused(side: Mapping[str, View]) -> bool:
    return any(_FUSED.fullmatch(name) for name in side)


def _experts(side: Mapping[str, View], instruct: Checkpoint) -> dict[str, View]:
    """The side with every expert by itself, under the names of the layout that stores them one by one."""
    kind = str(instruct.config.get("model_type"))
    if kind not in EXPERTS:
        raise PairError(
            f"one side stores its experts one by one, the other fused, and for model_type {kind!r} no conversion is "
            "known; save both with the same version of transformers"
        )
    block, gate, up, down = EXPERTS[kind]
    found: dict[str, View] = {}
    for name, view in side.items():
        fused = _FUSED.fullmatch(name)
        if fused is None:
            found[name] = view
            continue
        if len(view.shape) != 3 or (fused["part"] == "gate_up_proj" and view.shape[1] % 2):
            raise PairError(f"{name} has shape {view.shape}; (experts, rows, columns) is wanted of fused experts")
        experts, rows, columns = view.shape
        parts = (gate, up) if fused["part"] == "gate_up_proj" else (down,)
        shape = (rows // len(parts), columns)
        for number in range(experts * len(parts)):
            expert, part = divmod(number, len(parts))
            place = f"{fused['block']}.{expert}.{parts[part]}.weight"
            found[place] = View(name, view.start + number * math.prod(shape), shape)
    return {name.replace(block, ".mlp."): view for name, view in found.items()}
