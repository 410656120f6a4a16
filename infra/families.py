"""Writes shadowft_core/checkpoint/families.json: what the pinned transformers knows about the families of models.

Every class that writes text (causal, image-text-to-text, sequence-to-sequence) is built from its default config on
torch's meta device, without any weights. It is then asked which parameters are tied and which fields of config.json
decide it, what its parameters are called in files, the kind of each one's module, how its experts are stored, and which
tensors of a file it ignores. The rooms that read weights read the table and need neither torch nor transformers. After
a change of the pinned transformers:

    python -m infra.families            # write the table (a minute)
    python -m infra.families --check    # exit code 1 and the classes that differ, when the table is out of date
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infra.family_facts import facts

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
TABLE = Path(__file__).resolve().parents[1] / "shadowft_core/checkpoint/families.json"
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
UNBUILT = {  # no setting makes these build; a text model inside them that has an entry of its own still counts
    *("chameleon", "cohere_compass", "cohere_compass_text", "dbrx", "deepseek_ocr2", "diffusion_gemma", "emu3"),
    *("fast_vlm", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "granite4_vision", "musicgen"),
    *("musicgen_melody", "perception_lm", "pp_formulanet", "qwen4_exp", "qwen4_exp_text", "reformer"),
}


def classes() -> dict[str, str]:
    """Class name by model type; where a type has several classes, the one that holds the whole model."""
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


def table(found: Mapping[str, tuple[dict[str, Any], dict[str, str]]], types: Mapping[str, str]) -> dict[str, Any]:
    """The whole table. A kind is listed under the shortest name suffix that means the same kind in every class,
    otherwise within the class, where the longest matching suffix counts."""
    from importlib.metadata import version

    said: dict[str, set[str]] = defaultdict(set)
    for _, kinds in found.values():
        for name, kind in kinds.items():
            for end in _ends(name):
                said[end].add(kind)
    common: dict[str, str] = {}
    entries = {}
    for name, (entry, kinds) in sorted(found.items()):
        own: dict[str, str] = {}
        here: dict[str, set[str]] = defaultdict(set)
        for parameter, kind in kinds.items():
            for end in _ends(parameter):
                here[end].add(kind)
        for parameter, kind in sorted(kinds.items()):
            end = next((e for e in _ends(parameter) if len(said[e]) == 1), None)
            if end is not None:
                common[end] = kind
            else:
                own[next((e for e in _ends(parameter) if len(here[e]) == 1), parameter)] = kind
        entries[name] = entry | ({"kinds": own} if own else {})
    return {"transformers": version("transformers"), "types": dict(types), "kinds": common, "classes": entries}


def _ends(name: str) -> Iterator[str]:
    """The suffixes of a name in whole steps, shortest first; `weight` or `bias` is never one by itself."""
    steps = name.split(".")
    first = 2 if steps[-1] in ("weight", "bias") else 1
    for length in range(first, len(steps) + 1):
        yield ".".join(steps[-length:])


def written(whole: Mapping[str, Any]) -> str:
    """The table as text, one line per class, so that diffs are readable."""
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
