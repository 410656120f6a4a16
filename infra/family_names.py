"""Names of a model's parameters in files, from what transformers converts when it saves; used by infra/families.py."""

import re
from collections.abc import Collection, Mapping
from typing import Any


def without_numbers(name: str) -> str:
    """A name with `#` for every number of a layer or an expert; one of a sequence, `mlp.0.weight`, keeps its own."""
    return re.sub(r"(?<=\.)\d+(?=\.(?!(weight|bias)$)|$)", "#", name)


def in_files(model: Any, names: Collection[str]) -> tuple[dict[str, str], dict[str, Any], dict[str, list[str]]]:
    """What parameters are called in files: the name of those that are one tensor there, the way in which fused experts
    are stored by the end of their name, and of what is converted in any other way the names of all that holds it."""
    from transformers import core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping

    forward = get_model_conversion_mapping(model, add_legacy=False)
    back = [c.reverse_transform() for c in forward[::-1] if not isinstance(c, loading.PrefixChange)]
    renamings = [entry for entry in back if isinstance(entry, loading.WeightRenaming)]
    converters = [entry for entry in back if isinstance(entry, loading.WeightConverter)]
    stored: dict[str, str] = {}
    experts: dict[str, Any] = {}
    other: dict[str, list[str]] = {}
    turned = _turned(model)
    for name in sorted(names):
        first, source = loading.apply_converters(name, converters)
        if source is None:
            stored[name] = loading.apply_renamings(name, renamings)
        found = next((c for c in converters if source in c.source_patterns), None) if source else None
        way = [type(operation).__name__ for operation in found.operations] if found else []
        targets = [re.sub(r"\.weight$", "", pattern) for pattern in getattr(found, "target_patterns", ())]
        ends = [target.rpartition(".")[2].replace("\\", "") for target in targets]
        leaf = name.rpartition(".")[2]
        if way in (["Chunk", "SplitModulelist"], ["SplitModulelist"]) and turned.get(name) is not None:
            experts[leaf] = {"turned": turned[name], "parts": ends}
            for end in ends:  # an expert's matrix, as if it were a parameter of its own
                single = name.replace(leaf, f"0.{end}.weight")
                stored[single] = loading.apply_renamings(single, renamings)
        elif way == ["Transpose"] and turned.get(name) is not None:
            experts[leaf] = {"turned": turned[name], "transposed": True}
        elif found is not None:
            begun = [target.replace("\\", "") for target in targets]
            parts = [first.replace(begun[0], part).replace("*", "0") for part in begun]
            other[name] = [loading.apply_renamings(part, renamings) for part in parts]
        elif turned.get(name):
            experts[leaf] = {"turned": True}
    return stored, experts, other


def _turned(model: Any) -> dict[str, bool]:
    """Whether fused experts are (experts, inputs, outputs), as PEFT reads it; by name, of every stack of matrices."""
    return {
        f"{prefix}.{name}": bool(getattr(module, "is_transposed", False))
        for prefix, module in model.named_modules()
        for name, tensor in module.named_parameters(recurse=False)
        if tensor.ndim == 3 and "." not in name
    }


def beginnings(stored: Mapping[str, str]) -> list[list[str]]:
    """`[in memory, in files]`, beginnings of names in whole steps, each true of every name that begins so."""
    expected = {without_numbers(name): without_numbers(found) for name, found in stored.items()}
    rules: dict[str, str] = {}
    for name, found in sorted(expected.items()):
        ours, theirs = name.split("."), found.split(".")
        if _begun(name, rules) == found:
            continue
        ways = [(ours, theirs)]
        while len(ours) > 1 and len(theirs) > 1 and ours[-1] == theirs[-1]:
            ours, theirs = ours[:-1], theirs[:-1]
            ways.append((ours, theirs))
        for way in reversed(ways):
            start, there = (".".join(steps) for steps in way)
            alike = [n for n in expected if n == start or n.startswith(f"{start}.")]
            if all(expected[n] == there + n.removeprefix(start) for n in alike):
                rules[start] = there
                break
    for name, found in expected.items():
        if (got := _begun(name, rules)) != found:
            raise ValueError(f"{name}: the rules say {got}, files {found}")
    return [list(rule) for rule in sorted(rules.items())]


def _begun(name: str, rules: Mapping[str, str]) -> str:
    steps = name.split(".")
    for length in range(len(steps), 0, -1):
        if (found := rules.get(".".join(steps[:length]))) is not None:
            return ".".join([found, *steps[length:]])
    return name
