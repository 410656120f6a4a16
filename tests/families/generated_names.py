"""Names of a model's parameters in files, from what transformers converts when it saves; used by generate.py."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from shadowft_core.weights.families.names import renamed, without_numbers


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
    """`[beginning, its replacement]`, in whole steps: each is true of every name that begins so, the longest counts.

    Raises ValueError when such rules do not lead from every name, numbers included, to what `stored` has for it.
    """
    expected = {without_numbers(name): without_numbers(found) for name, found in stored.items()}
    rules: dict[str, str] = {}
    for name, found in sorted(expected.items()):
        if renamed(name, rules) == found:
            continue
        ours, theirs = name.split("."), found.split(".")
        ways = [(name, found)]
        while len(ours) > 1 and len(theirs) > 1 and ours[-1] == theirs[-1]:
            ours, theirs = ours[:-1], theirs[:-1]
            ways.append((".".join(ours), ".".join(theirs)))
        for start, there in reversed(ways):
            alike = [n for n in expected if n == start or n.startswith(f"{start}.")]
            if all(expected[n] == there + n.removeprefix(start) for n in alike):
                rules[start] = there
                break
    for name, found in stored.items():
        if (got := renamed(name, rules)) != found:
            raise ValueError(f"{name}: the rules lead to {got}, not to {found}")
    return [list(rule) for rule in sorted(rules.items())]
