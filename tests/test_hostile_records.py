"""Recipes, receipts, sweep files and what other trainers leave: read by their forms, in bounded time."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core import limits
from shadowft_core.delta import extract, open_delta, read_tuned
from shadowft_core.errors import CheckpointError, DeltaError, GraftError, ShadowError
from shadowft_core.grafting import chosen, deltas_of, graft, options_of
from shadowft_core.grafting.options import Options
from shadowft_core.grafting.receipt import read_receipt
from shadowft_core.params import Graft
from tests.fixtures.models import write_model

DIGEST = f"sha256:{'0' * 64}"
SWEEPS: list[tuple[dict[str, Any] | bytes, str]] = [
    ({"format": 2}, "format: Input should be 1, found 2"),
    ({"scale": -3}, "scale: Input should be greater than or equal to 0, found -3"),
    ({"scale": 1000}, "scale: Input should be less than or equal to 10, found 1000"),
    ({"scale": "1"}, "scale: Input should be a valid number"),
    ({"scope": 7}, "scope"),
    ({"factors": [["*", -1]]}, "factors"),
    ({"factors": {"*": 1}}, "factors"),
    (b'{"format":1,"scale":NaN}', "NaN is not a JSON number"),
    (b'{"format":1,"scale":1,"scale":2}', "duplicate key"),
    (b"[1]", "should be an object"),
]


@pytest.mark.parametrize(("sweep", "said"), SWEEPS)
def test_a_sweep_file_is_of_its_form(tmp_path: Path, sweep: dict[str, Any] | bytes, said: str) -> None:
    whole = {"format": 1, "scale": 0.5, "scope": "all", "curve": [], "tie": 0.1}
    file = tmp_path / "sweep.json"
    file.write_bytes(sweep if isinstance(sweep, bytes) else json.dumps(whole | sweep).encode())
    with pytest.raises(GraftError, match=rf"sweep\.json: .*{said}.*"):
        chosen([(tmp_path, None)], Options(), Graft(), file)


RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"deltas": []}, "deltas: List should have at least 1 item"),
    ({"deltas": [7]}, r"deltas\.0"),
    ({"deltas": [{"digest": DIGEST, "scale": "1"}]}, r"deltas\.0\.scale"),
    ({"deltas": [{"digest": DIGEST, "scale": True}]}, r"deltas\.0\.scale"),
    ({"deltas": [{"digest": "../x", "scale": 1}]}, r"deltas\.0\.digest"),
    ({"deltas": [{"tuned": DIGEST, "base": DIGEST, "scale": 1}]}, "without a stored delta"),
    ({"scope": {"a": 1}}, "scope"),
    ({"dtype": None}, "dtype"),
    ({"merge": {"rule": "none"}}, "merge rule 'none'"),
    ({"merge": {"rule": "dare", "density": "x", "seed": 1}}, r"merge\.density"),
    ({"merge": 3}, "merge"),
    ({"merge": {"rule": "sum", "own": 1}}, r"unknown field merge\.own"),
    ({"deltas": [{"base": 5, "tuned": DIGEST, "scale": 1}]}, r"deltas\.0\.base: "),
    ({"deltas": [{"base": DIGEST, "tuned": 5, "scale": 1}]}, r"deltas\.0\.tuned: "),
    ({"scale_for": [["*"]]}, "scale_for"),
    ({"scale_for": {"*": 1}}, "scale_for"),
    ({"waivers": "onto-base"}, "waivers"),
    ({"waivers": ["all"]}, "waiver 'all'"),
    ({"ignore": [1]}, "ignore"),
]


@pytest.mark.parametrize(("change", "said"), RECIPES)
def test_a_recipe_is_of_its_form(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    recipe = {"deltas": [{"digest": DIGEST, "scale": 1.0}], "scope": "all", "dtype": "instruct"}

    def read(recipe: dict[str, Any]) -> None:
        deltas_of(recipe, tmp_path / "recipe.json")
        options_of(recipe)

    read(recipe)  # of an early version, without merge, waivers and further fields
    with pytest.raises(GraftError, match=said):
        read(recipe | change)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    base = {"model.layers.0.mlp.up_proj.weight": rng.standard_normal((8, 4)).astype(np.float32)}
    for role, move in {"base": 0.0, "tuned": 0.01, "instruct": 0.02}.items():
        write_model(tmp_path / role, {name: array + np.float32(move) for name, array in base.items()})
    return tmp_path


NORMS = {"weight_norm": 1, "delta_norm": 1, "cosine": 1, "energy": 1, "unchanged": 0}
RECEIPTS: list[tuple[str, dict[str, Any], str]] = [
    ("receipt.json", {"onto_base": "no"}, "onto_base"),
    ("receipt.json", {"classes": {"grafted": "1"}}, "classes"),
    ("receipt.json", {"retention": {"energy": 1}}, "retention"),
    ("receipt.json", {"grafted": {"w": 3}}, "grafted"),
    ("receipt.json", {"untouched": ["w"]}, "untouched"),
    ("receipt.json", {"trained": {DIGEST: {}}}, "trained"),
    ("receipt.json", {"trained": {"x": {"name": None, "facts": {}, "not_known": [], "unreadable": []}}}, "trained"),
    ("receipt.json", {"format": 2}, "format: .*found 2"),
    ("receipt.json", {"tokens": {"w": {"matched": float("nan")}}}, "NaN is not a JSON number"),
    ("receipt.json", {"travel": {"energy": "1", "stays": {}}}, r"travel\.energy"),
    ("receipt.json", {"travel": {"energy": 1, "stays": {"w": "1"}}}, r"travel\.stays\.w"),
    ("receipt.json", {"retention": NORMS | {"weight_norm": -1}}, r"retention\.weight_norm: .*found -1"),
    ("receipt.json", {"retention": NORMS | {"delta_norm": -1}}, r"retention\.delta_norm: .*found -1"),
    ("recipe.json", {"format": 2}, "format: .*found 2"),
    ("recipe.json", {"regrafted_from": "x"}, "regrafted_from: String should match"),
    ("receipt.json", {"ignored": {"a": {"base": "w"}}}, "ignored"),
    ("recipe.json", {"instruct": {"digest": 1}}, "instruct.digest"),
    ("recipe.json", {"files": {"a": "b"}}, "files"),
    ("recipe.json", {"digest": "sha256:x"}, "digest"),
]


@pytest.mark.parametrize(("name", "change", "said"), RECEIPTS)
def test_a_receipt_is_of_its_form(world: Path, name: str, change: dict[str, Any], said: str) -> None:
    extract(world / "base", world / "tuned", world / "delta")
    graft(world / "instruct", [(world / "delta", 1.0)], world / "out")
    assert read_receipt(world / "out")["trained"] == {}
    (world / "out" / name).write_text(json.dumps(json.loads((world / "out" / name).read_bytes()) | change))
    with pytest.raises(CheckpointError, match=rf"{name}: .*{said}"):
        read_receipt(world / "out")


def nested(levels: int) -> bytes:
    """Lists that hold ten times the list before: ten to the number of levels, once written out."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"tags: *a{levels - 1}"]).encode()


def elsewhere(path: Path) -> None:
    (path.parent.parent / "state.json").write_text("{}")
    path.symlink_to("../state.json")


UNREADABLE: dict[str, tuple[str, bytes | Callable[[Path], Any]]] = {
    "not JSON": ("trainer_state.json", b"{"),
    "a list": ("trainer_state.json", b"[]"),
    "deep": ("trainer_state.json", b"[" * 100_000),
    "digits": ("trainer_state.json", b'{"global_step": ' + b"9" * 5000 + b"}"),
    "a key twice": ("all_results.json", b'{"epoch": 1, "epoch": 2}'),
    "deep YAML": ("settings.yaml", b"[" * 100_000),
    "long YAML": ("settings.yaml", b"a: 1\n" * 100_000),
    "no text": ("README.md", b"\xff\xfe"),
    "a link out": ("README.md", lambda path: path.symlink_to("/etc/passwd")),
    "state elsewhere": ("trainer_state.json", elsewhere),
    "a long head": ("README.md", b"---\n" + b"a: 1\n" * 100_000 + b"---\n"),
    "a large card": ("README.md", b"x" * (limits.CONFIG_BYTES + 1)),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_of_a_trainer_that_cannot_be_read_is_named(
    world: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content = UNREADABLE[case]
    (world / "tuned").rename(world / "model")
    (world / "tuned").mkdir()
    (world / "model").rename(world / "tuned" / "model")
    content(world / "tuned" / name) if callable(content) else (world / "tuned" / name).write_bytes(content)
    begun = time.thread_time()
    told = read_tuned(world / "tuned").told.trainer
    assert time.thread_time() - begun < 3
    assert told is not None
    assert told["unreadable"] == [name]
    assert capsys.readouterr().err.count(str(world / "tuned" / name)) == 1


ODD: list[tuple[str, Any]] = [
    ("trainer_state.json", {"global_step": True, "epoch": "x", "log_history": [1, {"step": {}}, {"step": 1, "loss": []}]
    }),
    ("trainer_state.json", {"global_step": 1e300, "log_history": {"a": 1}, "num_input_tokens_seen": -(2**70)}),
    ("trainer_state.json", {"global_step": -3, "best_model_checkpoint": 5}),
    ("trainer_state.json", {"global_step": -3}),
    ("trainer_state.json", {"global_step": 4, "best_model_checkpoint": 5}),
    ("adapter_config.json~", {"peft_type": {"a": 1}, "r": "x", "lora_alpha": [], "base_model_name_or_path": [1]}),
    ("README.md", b"---\n" + nested(40) + b"\n---\nbody"),
    ("README.md", b"---\ntags: [1, {a: b}]\nbase_model: {a: b}\ndatasets: [[1], x]\n---\n"),
    ("README.md", b"axolotl version: `1`\n```yaml\n" * 30_000),
    ("README.md", b"---\nbase_model: null\n---\n"),
    ("README.md", b"- learning_rate: 1e999\n- num_epochs: -1e999\n- seed: 1e999\n"),
    ("config.yaml", b"base_model: " + b"x" * 5000 + b"\ndatasets: 1\nseed: 1:1:1\nlearning_rate: 1e999\n"),
    ("config.yaml", b"base_model: \"" + b"x/" * 400 + b"\"\nadapter: lora\nseed: !!python/object:os.system x\n"),
    ("config.yaml", b"model_name_or_path: \"a\\0b\"\nstage: sft\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), ODD)
def test_odd_values_of_a_trainer_are_no_facts(world: Path, name: str, content: Any) -> None:
    (world / "tuned" / name.rstrip("~")).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    if name.endswith("~"):
        (world / "tuned" / "model.safetensors").rename(world / "tuned" / "adapter_model.safetensors")
        assert read_tuned(world / "tuned").told.start == ""
        return
    begun = time.thread_time()
    extract(world / "base", world / "tuned", world / "delta")
    assert time.thread_time() - begun < 4
    facts = (open_delta(world / "delta").trainer or {"facts": {}})["facts"]
    assert not facts.keys() & {"seed", "learning_rate", "first_loss", "tokens", "datasets", "epochs"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_digest": 5}, "model_digest"),
        ({"data_digest": 5}, "data_digest"),
        ({"seed": "42"}, "seed"),
        ({"trainer": {"name": "x"}}, "trainer"),
        ({"trainer": {"name": "x", "facts": {"epochs": "3"}, "not_known": [], "unreadable": []}}, r"facts\.epochs"),
        ([], "expected a JSON object"),
    ],
)
def test_the_record_of_a_training_is_of_its_form(world: Path, content: Any, said: str) -> None:
    (world / "tuned" / "train.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=rf"train\.json: .*{said}"):
        extract(world / "base", world / "tuned", world / "delta")


def test_the_record_of_a_training_may_have_further_fields(world: Path) -> None:
    (world / "tuned" / "train.json").write_text(json.dumps({"data_digest": "d", "own": {"a": 1}}))
    extract(world / "base", world / "tuned", world / "delta")
    assert json.loads((world / "delta" / "delta.json").read_bytes())["train"]["data_digest"] == "d"


PAIRS: list[Any] = [[], {"base": 1}, {"base": {"ref": 5}}, {"instruct": {"ref": ["a"]}}, {"untrained_tokens": 1}]


@pytest.mark.parametrize("pair", PAIRS)
def test_the_record_of_a_pair_is_of_its_form(world: Path, pair: Any) -> None:
    (world / "pair.json").write_text(json.dumps(pair))
    (world / "tuned" / "config.yaml").write_text("base_model: owner/name\nadapter: full\n")
    with pytest.raises(CheckpointError, match=r"pair\.json: "):
        extract(world / "base", world / "tuned", world / "delta")


@pytest.mark.parametrize("what", ["model elsewhere", "a link in it", "a pipe in it"])
def test_a_tuned_folder_has_its_own_files(world: Path, what: str) -> None:
    run = world / "run"
    run.mkdir()
    if what == "model elsewhere":
        (run / "model").symlink_to(world / "tuned")
    else:
        (world / "tuned").rename(run / "model")
        if what == "a link in it":
            (run / "model" / "notes.json").symlink_to("/etc/passwd")
        else:
            os.mkfifo(run / "model" / "notes.json")
    with pytest.raises((DeltaError, ShadowError), match=r"leads out of its folder|pipe, socket"):
        extract(world / "base", run, world / "delta")
