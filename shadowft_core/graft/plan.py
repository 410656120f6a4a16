"""What happens to each tensor of the Instruct: decided, and refused, before any weight is read."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from shadowft_core.checkpoint import FLOATS, Checkpoint, open_checkpoint
from shadowft_core.delta import Delta, open_delta
from shadowft_core.errors import GraftError, MisfitError, Quantised, ShapeMismatch, TensorMissing, ZeroDelta

Scope = str | Sequence[str]
OUTPUTS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# The projections of attention and feed-forward blocks, with the names that fused or older layouts give them.
_LINEAR = re.compile(
    r"\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv_proj|gate_up_proj|wqkv|wo|w1|w2|w3|W_pack"
    r"|query_key_value)(\.weight|\.bias)?$"
)


@dataclass
class Plan:
    """What happens to each tensor of the Instruct; all checks that need no weights have passed."""

    instruct: Checkpoint
    deltas: list[tuple[Delta, float]]
    sources: dict[str, list[tuple[Delta, float, str]]]
    """per grafted tensor: delta, scale, and the tensor's name in the delta"""
    untouched: dict[str, str]
    left_out: list[str]
    """tensors of a delta that the scope keeps at home"""
    dtype: dict[str, str]
    receipts: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def recast(self) -> bool:
        return any(dtype != self.instruct.info(name).dtype for name, dtype in self.dtype.items())


def make_plan(instruct: Path, deltas: Sequence[tuple[Path, float]], scope: Scope, dtype: str) -> Plan:
    model = open_checkpoint(instruct)
    if model.config.get("quantization_config"):
        raise Quantised(f"{instruct}: config.json has a quantization_config; graft on the unquantised Instruct")
    if dtype != "instruct" and dtype not in OUTPUTS:
        raise GraftError(f"dtype {dtype!r}; known are instruct, {', '.join(OUTPUTS)}")
    opened = [(open_delta(path), _finite(path, scale)) for path, scale in deltas]
    names = sorted({name for delta, _ in opened for name in delta.names})
    travelling = _in_scope(names, scope)
    tied = model.tied
    sources: dict[str, list[tuple[Delta, float, str]]] = {}
    for delta, scale in opened:
        for name in filter(travelling.__contains__, delta.names):
            _require_fit(model, delta, name)
            targets = [name, tied[0]] if tied and tied[1] == name and tied[0] in model else [name]
            for target in targets if scale else ():
                sources.setdefault(target, []).append((delta, scale, name))
    if not sources and any(scale for _, scale in opened):
        raise ZeroDelta(f"{instruct}: no tensor would be grafted; pass a delta and a scope that meets it")
    reason = "no delta" if any(scale for _, scale in opened) else "scale 0"
    left_out = [name for name in names if name not in travelling]
    wanted = OUTPUTS.get(dtype)
    return Plan(
        instruct=model,
        deltas=opened,
        sources=sources,
        untouched={n: "out of scope" if n in left_out else reason for n in model.names if n not in sources},
        left_out=left_out,
        dtype={n: wanted if wanted and model.info(n).dtype in FLOATS else model.info(n).dtype for n in model.names},
    )


def _finite(path: Path, scale: float) -> float:
    if not math.isfinite(scale):
        raise GraftError(f"{path}: scale {scale}; a finite number is wanted")
    return float(scale)


def _in_scope(names: list[str], scope: Scope) -> set[str]:
    """Delta tensors that travel. Raises GraftError when the scope, or one of its patterns, meets none of them."""
    if scope == "all":
        return set(names)
    if scope == "linear":
        found = {name for name in names if _LINEAR.search(name)}
        if not found:
            raise GraftError(f"scope `linear` meets none of the delta's {len(names)} tensors; pass patterns or `all`")
        return found
    found = set()
    for pattern in [scope] if isinstance(scope, str) else scope:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise GraftError(f"scope pattern {pattern!r} meets none of the delta's {len(names)} tensors; correct it")
        found |= matched
    return found


def _require_fit(model: Checkpoint, delta: Delta, name: str) -> None:
    where = f"{delta.path}: tensor {name}"
    if model.tied and model.tied[0] == name:
        raise MisfitError(f"{where} is the head, which {model.path} ties to {model.tied[1]}; the pair does not fit")
    if name not in model:
        raise TensorMissing(f"{where} is missing in {model.path}; graft on an Instruct of the same family and layout")
    info = model.info(name)
    if info.shape != delta.shape(name):
        raise ShapeMismatch(
            f"{where} has shape {delta.shape(name)}, {model.path} has {info.shape}; the pair does not fit"
        )
    if info.dtype not in FLOATS:
        raise Quantised(f"{where}: {model.path} holds it as {info.dtype}; one of {', '.join(FLOATS)} is wanted")
