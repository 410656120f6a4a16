"""Writes shadowft_core/weights/families/table.json: what the pinned transformers knows about the families of models.

Every class that writes text (causal, image-text-to-text, sequence-to-sequence) is built from its default config on
torch's meta device, without any weights. It is then asked which parameters are tied and which fields of config.json
decide it, what its parameters are called in files, the kind of each one's module, how its experts are stored, and which
tensors of a file it ignores. The rooms that read weights read the table and need neither torch nor transformers. After
a change of the pinned transformers:

    python -m tests.families.generate            # write the table (a minute)
    python -m tests.families.generate --check    # exit code 1 and the classes that differ, when out of date
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from shadowft_core.weights.families.names import endings, without_numbers
from tests.families.generated_names import beginnings, in_files

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
TABLE = Path(__file__).resolve().parents[2] / "shadowft_core/weights/families/table.json"
TIE = "tie_word_embeddings"
SETTINGS: dict[str, dict[str, Any]] = {  # for classes whose default config builds no model
    "aya_vision": {"vision_config": {"hidden_size": 1152, "num_attention_heads": 16}},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 4},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
UNBUILT = {  # no setting helps, or numbers in names differ between memory and files; their text models may have entries
    *("chameleon", "cohere_compass", "cohere_compass_text", "dbrx", "deepseek_ocr2", "diffusion_gemma", "emu3"),
    *("fast_vlm", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "granite4_vision", "inkling2"),
    *("inkling2_text", "inkling_mm_model", "musicgen", "musicgen_melody", "perception_lm", "pp_formulanet"),
    *("qwen4_exp", "qwen4_exp_text", "reformer"),
}


def classes() -> dict[str, str]:
    """Name of the class by model type: the one for the whole model, where a type has several."""
    from transformers.models.auto import modeling_auto as auto

    found: dict[str, str] = {}
    for mapping in (
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):
        for model_type, name in mapping.items():
            found[model_type] = name if isinstance(name, str) else name[0]
    return dict(sorted((kind, name) for kind, name in found.items() if kind not in UNBUILT))


def build(model_type: str, class_name: str) -> Any:
    """The model of a type on the meta device, from the default config of its class."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[model_type].from_dict(SETTINGS.get(model_type, {}))
    with torch.device("meta"):
        return getattr(transformers, class_name)(config)


def facts(model: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The table's entry of one class, without its kinds; and the kind of every matrix, by both of its names."""
    names = {n for n, _ in model.named_parameters(remove_duplicate=False)} | {n for n, _ in model.named_buffers()}
    names &= set(model.state_dict())
    stored, experts, other = in_files(model, names)
    parts = {part: name for name, found in other.items() for part in found}
    kinds = _kinds(model, names)
    entry = {
        "prefix": model.base_model_prefix if any(n.startswith(f"{model.base_model_prefix}.") for n in names) else "",
        "ties": list(_ties(model)),
        "files": (files := beginnings(stored)),
        "memory": memory if (memory := beginnings({f: n for n, f in stored.items()})) != _turned(files) else [],
        "experts": experts,
        "converted": sorted(set(map(without_numbers, other))),
        "ignored": sorted(_ignored(model, {*names, *stored.values()})),
    }
    shown = {without_numbers(n): k for n, k in kinds.items()}
    shown |= {without_numbers(stored.get(n, n)): k for n, k in kinds.items()}
    shown |= {without_numbers(part): kinds[name] for part, name in parts.items() if name in kinds}
    return {key: value for key, value in entry.items() if value}, shown


def _turned(rules: list[list[str]]) -> list[list[str]]:
    return sorted([theirs, ours] for ours, theirs in rules)


def _ties(model: Any) -> Iterator[dict[str, Any]]:
    """Tied parameters, [target, source] in memory, and in which states of the fields of config.json they are tied.

    A state has a letter for every field: `T`rue, `F`alse or `-`, absent. `within` names the part of the model that
    ties, where it is not the model itself.
    """
    from transformers import PreTrainedModel

    for prefix, module in model.named_modules():
        if not isinstance(module, PreTrainedModel) or not module._tied_weights_keys:
            continue
        place = _place(model.config, module.config)
        states = _states(type(model.config), place)
        module.config.tie_word_embeddings = True
        dot = f"{prefix}." if prefix else ""
        tied = module.get_expanded_tied_weights_keys()
        pairs = sorted([dot + target, dot + source] for target, source in tied.items())
        # A table of names cannot describe blocks that share weights by number (Zamba).
        pairs = [pair for pair in pairs if without_numbers(pair[0]) == pair[0] and without_numbers(pair[1]) == pair[1]]
        if pairs and states["tied"]:
            yield {"pairs": pairs, **states} | ({"within": ".".join(place)} if place else {})


def _place(config: Any, nested: Any, path: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The path of fields from a config to one nested in it. Raises ValueError when there is none."""
    if config is nested:
        return path
    for key in getattr(config, "sub_configs", None) or {}:
        with contextlib.suppress(ValueError):
            return _place(getattr(config, key, None), nested, (*path, key))
    raise ValueError("a part of the model has a config that is not nested in the model's")


def _states(config_class: Any, place: tuple[str, ...]) -> dict[str, Any]:
    """Which fields of config.json decide whether the part at `place` ties, found by trying every value of each."""
    paths = {(*place[:depth], TIE) for depth in range(len(place) + 1)}
    paths |= {(key, TIE) for key in getattr(config_class, "sub_configs", None) or {}}

    def tied(state: Mapping[tuple[str, ...], bool | None]) -> bool:
        written: dict[str, Any] = {}
        for path, value in state.items():
            inner = written
            for step in path[:-1]:
                inner = inner.setdefault(step, {})
            if value is not None:
                inner[TIE] = value
        config = config_class.from_dict(written)
        for step in place:
            config = getattr(config, step)
        return bool(getattr(config, TIE, False))

    fields = []
    for path in sorted(paths):
        with contextlib.suppress(Exception):  # a part of the config that cannot be set separately decides nothing
            if len({tied({path: value}) for value in (True, False, None)}) > 1:
                fields.append(path)
    letters = {"T": True, "F": False, "-": None}
    every = ("".join(state) for state in itertools.product(letters, repeat=len(fields)))
    return {
        "fields": [".".join(path) for path in fields],
        "tied": [s for s in every if tied({path: letters[x] for path, x in zip(fields, s, strict=True)})],
    }


def _kinds(model: Any, names: Collection[str]) -> dict[str, str]:
    """Kind of the module by the name of each of its matrices."""
    import torch
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    embedding, rows = model.get_input_embeddings(), _vocabularies(model)
    parts = [part for _, part in model.named_modules() if isinstance(part, PreTrainedModel)]
    heads = {id(head) for part in parts if (head := part.get_output_embeddings()) is not None}
    found: dict[str, str] = {}
    for prefix, module in model.named_modules():
        named = type(module).__name__
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            whole = f"{prefix}.{name}" if prefix else name
            if whole not in names or tensor.ndim < 2:
                continue
            if id(module) in heads:
                kind = "head"
            elif isinstance(module, torch.nn.Embedding):
                kind = "embedding" if module is embedding or tensor.shape[0] in rows else "positions"
            elif (
                re.search(r"Router|TopK|Gating", named)
                or "Router" in type(model.get_submodule(prefix.rpartition(".")[0])).__name__
                or (named.endswith("Gate") and name == "weight")
            ):
                kind = "router"
            elif isinstance(module, Conv1D):
                kind = "conv1d"
            elif isinstance(module, torch.nn.Linear) or (named == "MultiheadAttention" and name.endswith("weight")):
                kind = "linear"
            elif tensor.ndim == 3 and re.search(r"xpert|MoE|Moe", named) and "bias" not in name:
                kind = "experts"
            else:
                kind = "other"
            found[whole] = kind
    return found


def _vocabularies(model: Any) -> set[int]:
    """Vocabulary sizes, by which token embeddings are known: a class may have several."""
    from transformers import PreTrainedModel

    parts = [part for _, part in model.named_modules() if isinstance(part, PreTrainedModel)]
    sizes = {
        getattr(part.config, field, None) for part in parts for field in ("vocab_size", "vocab_size_per_layer_input")
    }
    return {size for size in sizes if isinstance(size, int)}


def _ignored(model: Any, names: Collection[str]) -> Iterator[str]:
    """Regular expressions of tensors in files that the class leaves out when it loads; none of its own matches."""
    found = set(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        found.add(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        found.add(r"(^|\.)position_ids$")
    for pattern in found:
        # transformers matches only unexpected names, so its `attn.bias` may match `c_attn.bias`; ours must not.
        for strict in (pattern, rf"(^|\.){pattern}$"):
            if not any(re.search(strict, name) for name in names):
                yield strict
                break


def table(found: Mapping[str, tuple[dict[str, Any], dict[str, str]]], types: Mapping[str, str]) -> dict[str, Any]:
    """The whole table. A kind is listed under the shortest suffix of names that has this kind in every class.

    Where there is none, it is listed in the class, whose longest matching suffix counts."""
    from importlib.metadata import version

    said: dict[str, set[str]] = defaultdict(set)
    for _, kinds in found.values():
        for name, kind in kinds.items():
            for end in endings(name):
                said[end].add(kind)
    common: dict[str, str] = {}
    entries = {}
    for name, (entry, kinds) in sorted(found.items()):
        own: dict[str, str] = {}
        here: dict[str, set[str]] = defaultdict(set)
        for parameter, kind in kinds.items():
            for end in endings(parameter):
                here[end].add(kind)
        for parameter, kind in sorted(kinds.items()):
            end = next((e for e in endings(parameter) if len(said[e]) == 1), None)
            if end is not None:
                common[end] = kind
            else:
                own[next((e for e in endings(parameter) if len(here[e]) == 1), parameter)] = kind
        entries[name] = entry | ({"kinds": own} if own else {})
    return {"transformers": version("transformers"), "types": dict(types), "kinds": common, "classes": entries}


def written(whole: Mapping[str, Any]) -> str:
    """The table as text, a line for every class, so that diffs are readable."""
    lines = []
    for key, value in whole.items():
        if key in ("classes", "kinds", "types"):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(value.items()))
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def generate() -> str:
    found, types = {}, classes()
    for number, (model_type, name) in enumerate(types.items(), 1):
        if name not in found:
            found[name] = facts(build(model_type, name))
        if sys.stderr.isatty():
            print(f"\r{number}/{len(types)} {model_type:40}", end="", file=sys.stderr)
    return written(table(found, types))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    fresh = generate()
    if not check:
        TABLE.write_text(fresh, encoding="utf-8")
        return 0
    old, new = json.loads(TABLE.read_text(encoding="utf-8")), json.loads(fresh)
    for part in ("types", "kinds", "classes"):
        for key in sorted(old[part].keys() | new[part].keys()):
            if old[part].get(key) != new[part].get(key):
                print(f"{part}: {key} differs", file=sys.stderr)
    return int(old != new)


if __name__ == "__main__":
    sys.exit(main())
