"""Damaged model folders, results of other trainers, recipes, receipts and sweep files."""

import json
from pathlib import Path

import numpy as np

from shadowft_core.delta import extract, read_tuned
from shadowft_core.files import canonical_json
from shadowft_core.grafting import chosen, deltas_of, graft, options_of
from shadowft_core.grafting.options import Options
from shadowft_core.grafting.receipt import read_receipt
from shadowft_core.loading import load, own_code
from shadowft_core.pair import compare_models
from shadowft_core.params import Graft
from shadowft_core.plan.shape import shape_of
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import write_model
from tests.fuzz.damage import bytes_damage, json_damage, safetensors_damage, yaml_damage
from tests.fuzz.harness import WORKERS, Target, fuzzed

UP, EMBED = "model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"
WORDS = {"a": 0, "b": 1, "<s>": 2, "</s>": 3}
TOKENIZER = {"model": {"type": "BPE", "vocab": WORDS, "merges": []}, "added_tokens": [{"id": 3, "content": "</s>"}]}
CONFIG = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 4}


class Loader:
    """The last step of a load, which is the business of transformers."""

    @staticmethod
    def from_pretrained(folder: Path, **_: object) -> Path:
        return folder


def make_model(folder: Path, move: float = 0.0, name: str = "model") -> Path:
    rng = np.random.default_rng(0)
    tensors = {UP: rng.standard_normal((8, 4)), EMBED: rng.standard_normal((4, 4))}
    moved = {key: (array + move).astype(np.float32) for key, array in tensors.items()}
    made = write_model(folder / name, moved, 2, **CONFIG, rope_scaling={"type": "linear", "factor": 2.0})
    for file, content in {
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": {"eos_token": {"content": "</s>"}, "bos_token": "<s>", "chat_template": "{{ '<s>' }}"},
        "generation_config.json": {"eos_token_id": [3]},
        "chat_template.json": {"chat_template": [{"name": "default", "template": "</s>"}]},
    }.items():
        (made / file).write_text(json.dumps(content))
    return made


def make_pair(folder: Path) -> None:
    make_model(folder, name="base")
    make_model(folder, 0.01, name="instruct")


def read_pair(folder: Path) -> None:
    base, instruct = (open_checkpoint(folder / role) for role in ("base", "instruct"))
    load(Loader, instruct.path)
    own_code(instruct.path)
    shape_of(instruct)
    compare_models(base, instruct, full=True)
    instruct.other_files()


def make_run(folder: Path) -> None:
    make_model(folder, name="base")
    make_model(folder, 0.01, name="run")
    run = folder / "run"
    (run / "trainer_state.json").write_text(
        json.dumps(
            {"global_step": 2, "epoch": 1.0, "log_history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}
        )
    )
    (run / "train.json").write_text(json.dumps({"seed": 1, "data_digest": "x", "steps": 2}))
    (run / "README.md").write_text("---\ntags: [trl]\nbase_model: owner/name\n---\n- TRL: 1.0\n- seed: 3\n")
    (run / "config.yaml").write_text("base_model: owner/name\nadapter: lora\nseed: 4\nlearning_rate: 1e-4\n")


def read_run(folder: Path) -> None:
    read_tuned(folder / "run")
    extract(folder / "base", folder / "run", folder.parent / "out")


def make_graft(folder: Path) -> None:
    for role, move in {"base": 0.0, "tuned": 0.01, "instruct": 0.02}.items():
        make_model(folder.parent / "made", move, role)
    made = folder.parent / "made"
    extract(made / "base", made / "tuned", made / "delta")
    graft(made / "instruct", [(made / "delta", 1.0)], made / "out")
    folder.mkdir(exist_ok=True)
    for name in ("recipe.json", "receipt.json"):
        (folder / name).write_bytes((made / "out" / name).read_bytes())
    sweep = {"format": 1, "scale": 0.5, "scope": "all", "factors": [["*up*", 0.5]], "curve": [], "tie": 0.1}
    (folder / "sweep.json").write_bytes(canonical_json(sweep))


def read_graft(folder: Path) -> None:
    read_receipt(folder)
    recipe = json.loads((folder / "recipe.json").read_bytes())
    deltas_of(recipe, folder / "recipe.json")
    options_of(recipe)
    chosen([(folder, None)], Options(), Graft(), folder / "sweep.json")


SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.json")
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
test_hostile_weights = fuzzed(
    Target(
        "pair",
        make_pair,
        read_pair,
        {
            **{f"instruct/{name}": json_damage for name in (*SETTINGS, "model.safetensors.index.json")},
            f"instruct/{SHARDS[0]}": safetensors_damage,
        },
        allowed=WORKERS,
    ),
    Target(
        "run of another trainer",
        make_run,
        read_run,
        {
            "run/trainer_state.json": json_damage,
            "run/train.json": json_damage,
            "run/README.md": bytes_damage,
            "run/config.yaml": yaml_damage,
        },
        allowed=WORKERS,
    ),
    Target(
        "graft's records",
        make_graft,
        read_graft,
        dict.fromkeys(("recipe.json", "receipt.json", "sweep.json"), json_damage),
    ),
)
