"""The right answer: a graft by definition, in memory; and counts of how a folder differs from it."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Tensors = dict[str, np.ndarray]
Oracle = Callable[[Path], Tensors]
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


def tensors_of(folder: Path) -> Tensors:
    """All tensors of a model folder, read by the safetensors library, not by this project."""
    from safetensors.numpy import load_file

    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def grafted(base: Tensors, tuned: Tensors, instruct: Tensors) -> Tensors:
    """The definition: cast(instruct + (tuned - base)), float32 inside, one rounding to nearest even at the end."""
    result = {}
    for name, weights in instruct.items():
        delta = tuned[name].astype(np.float32) - base[name].astype(np.float32)
        exact = weights.astype(np.float32) + delta
        result[name] = exact.astype(weights.dtype)
    return result


def plain(case: Path) -> Tensors:
    return grafted(*(tensors_of(case / role) for role in ("base", "tuned", "instruct")))


def tied(case: Path) -> Tensors:
    """Use the embedding as head if a model stores no head."""
    base, tuned, instruct = (tensors_of(case / role) for role in ("base", "tuned", "instruct"))
    for model in (base, tuned):
        model.setdefault("lm_head.weight", model["model.embed_tokens.weight"])
    return grafted(base, tuned, instruct)


def by_token(case: Path) -> Tensors:
    """Rows of embedding and head are matched by token; a row without a partner stays the Instruct's."""
    base, tuned, instruct = (tensors_of(case / role) for role in ("base", "tuned", "instruct"))
    ours, theirs = (_ids(case / role) for role in ("base", "instruct"))
    shared = [token for token in theirs if token in ours]
    for name in VOCABULARY:
        if name in instruct:
            before, after = (np.zeros(instruct[name].shape, np.float32) for _ in range(2))
            for model, rows in ((base, before), (tuned, after)):
                rows[[theirs[t] for t in shared]] = model[name][[ours[t] for t in shared]].astype(np.float32)
            base[name], tuned[name] = before, after
    return grafted(base, tuned, instruct)


def converted(case: Path) -> Tensors:
    """Base and tuned model in the Instruct's layout of experts."""
    base, tuned, instruct = (tensors_of(case / role) for role in ("base", "tuned", "instruct"))
    fused = any(name.endswith("experts.gate_up_proj") for name in instruct)
    old = any(".block_sparse_moe." in name for name in instruct)
    base, tuned = (fuse(model) if fused else split(model, old) for model in (base, tuned))
    return grafted(base, tuned, instruct)


def adapted(case: Path) -> Tensors:
    """instruct + scaling * B A: the product in float64, rounded once to float32. A saved module is a difference."""
    from safetensors.numpy import load_file

    config = json.loads((case / "adapter" / "adapter_config.json").read_text())
    factors = load_file(case / "adapter" / "adapter_model.safetensors")
    base, instruct = (tensors_of(case / role) for role in ("base", "instruct"))
    tuned = {name: array.astype(np.float32) for name, array in base.items()}
    before = dict(tuned)
    for key, a in factors.items():
        name = key.removeprefix("base_model.model.").replace(".lora_A", "")
        if ".lora_A." in key:
            b, rank = factors[key.replace(".lora_A.", ".lora_B.")].astype(np.float64), a.shape[0]
            module = name.removesuffix(".weight")
            alpha = next((v for k, v in config["alpha_pattern"].items() if module.endswith(k)), config["lora_alpha"])
            scaling = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
            before[name] = np.zeros(base[name].shape, np.float32)
            tuned[name] = (b @ (a.astype(np.float64) * scaling)).astype(np.float32)
        elif ".lora_B." not in key:
            tuned[name] = a.astype(np.float32)
    if config.get("modules_to_save") is None:  # an adapter has no rows for tokens that only the Instruct has
        for name in VOCABULARY:
            if name in instruct:
                before[name] = tuned[name] = np.zeros(instruct[name].shape, np.float32)
    return grafted(before, tuned, instruct)


def _ids(folder: Path) -> dict[str, int]:
    return dict(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


_EXPERT = re.compile(r"(.+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")
_GATE, _UP, _DOWN = ("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")


def fuse(model: Tensors) -> Tensors:
    """Per-expert matrices stacked: gate over up, one slice for each expert. Does nothing to a fused model."""
    experts: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    result = {}
    for name, array in model.items():
        if match := _EXPERT.fullmatch(name):
            experts.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = array
        else:
            result[name.replace(".block_sparse_moe.", ".mlp.")] = array
    for layer, parts in experts.items():
        gate, up, down = (
            np.stack([found[number] for number in sorted(found)])
            for found in (next(parts[n] for n in names if n in parts) for names in (_GATE, _UP, _DOWN))
        )
        result[f"{layer}.mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        result[f"{layer}.mlp.experts.down_proj"] = down
    return result


def split(model: Tensors, old: bool = False) -> Tensors:
    """A fused model expert by expert, named as in Qwen3-MoE or, `old`, in Mixtral. A split model stays as it is."""
    style = 0 if old else 1
    result = {}
    for name, array in model.items():
        layer, _, kind = name.partition(".mlp.experts.")
        if kind == "gate_up_proj":
            halves = ((_GATE, array[:, : array.shape[1] // 2]), (_UP, array[:, array.shape[1] // 2 :]))
        elif kind == "down_proj":
            halves = ((_DOWN, array),)
        else:
            result[name.replace(".mlp.", ".block_sparse_moe.") if old else name] = array
            continue
        for names, experts in halves:
            for number, expert in enumerate(experts):
                block = "block_sparse_moe" if old else "mlp"
                result[f"{layer}.{block}.experts.{number}.{names[style]}.weight"] = expert
    return result


def one_layout(model: Tensors) -> Tensors:
    """One layout for comparing tools: experts fused, and no head that repeats the embedding."""
    model = fuse(model)
    embedding, head = (model.get(name) for name in VOCABULARY)
    repeats = head is not None and embedding is not None and head.tobytes() == embedding.tobytes()
    return {name: array for name, array in model.items() if not (repeats and name == VOCABULARY[1])}


@dataclass(frozen=True)
class Difference:
    """How two models differ."""

    misplaced: tuple[str, ...]
    """missing, extra, or of another dtype or shape"""
    undone: tuple[str, ...]
    """tensors that should have changed and equal the Instruct's"""
    entries: int
    """that differ: `share` is their share, `worst` the largest difference in units in the last place"""
    share: float
    worst: int
    rounding: bool
    """nothing misplaced, and no entry off by more than one unit in the last place of the tensor's largest entry"""

    def __str__(self) -> str:
        if self.misplaced:
            return f"{self.misplaced[0]} ({len(self.misplaced)} in all)"
        if self.undone:
            return f"no delta in {self.undone[0]} ({len(self.undone)} in all)"
        return f"{self.share:.2%} of the entries differ, by up to {self.worst} units in the last place"


def difference(expected: Tensors, found: Tensors, instruct: Tensors) -> Difference:
    misplaced = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    misplaced += [f"{name} is extra" for name in sorted(found.keys() - expected.keys())]
    undone, differing, total, worst, mild = [], 0, 0, 0, True
    for name in sorted(expected.keys() & found.keys()):
        want, got = expected[name], found[name]
        if (want.dtype, want.shape) != (got.dtype, got.shape):
            misplaced.append(f"{name} is {got.dtype} {got.shape}, not {want.dtype} {want.shape}")
            continue
        total += want.size
        if want.tobytes() == got.tobytes():
            continue
        apart = np.abs(_ordered(want) - _ordered(got))
        differing += int(np.count_nonzero(apart))
        worst = max(worst, int(apart.max()))
        exact, reached = want.astype(np.float64), got.astype(np.float64)
        largest = np.abs(want).max()
        unit = float(np.nextafter(largest, largest.dtype.type(np.inf))) - float(largest)
        mild &= bool((np.abs(exact - reached) <= unit).all())
        if got.tobytes() == instruct[name].tobytes():
            undone.append(name)
    rounding = mild and differing > 0 and not (misplaced or undone)
    return Difference(tuple(misplaced), tuple(undone), differing, differing / max(total, 1), worst, rounding)


def _ordered(array: np.ndarray) -> np.ndarray:
    """Floats as integers in the same order: neighbours differ by 1, and so do -0 and 0."""
    size = array.dtype.itemsize
    bits = np.ascontiguousarray(array).view(f"<i{size}").astype(np.int64)
    return np.where(bits < 0, -(bits & (2 ** (8 * size - 1) - 1)) - 1, bits)
