"""Hostile deltas: a certificate that says what cannot be, and files that are not the folder's own."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.delta.certificate import read_certificate
from shadowft_core.delta.frames import HEAD as FRAME
from shadowft_core.delta.frames import decode
from shadowft_core.errors import DeltaError
from shadowft_core.files import canonical_json, file_digest
from shadowft_core.weights import build_header, open_checkpoint, open_safetensors, write_safetensors
from tests.fixtures.models import write_model

EMBED, HEAD, W = "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.up_proj.weight"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    shapes = {EMBED: (6, 4), HEAD: (6, 4), W: (8, 30)}
    base = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "tuned", {name: array + np.float32(0.01) for name, array in base.items()})
    extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    return tmp_path / "delta"


def entry(name: str, **fields: Any) -> Change:
    return lambda whole: whole["tensors"][name].update(fields)


def renamed(name: str) -> Change:
    return lambda whole: whole["tensors"].update({name: whole["tensors"].pop(W)})


def factored(**fields: Any) -> Change:
    sound = {"form": "factors", "shape": [8, 30], "norm": 1.0, "rank": 2, "scaling": 1.0, "error": 0.1}
    digests = {"digest_a": f"sha256:{'0' * 64}", "digest_b": f"sha256:{'0' * 64}"}
    return lambda whole: whole["tensors"].update({W: sound | digests | fields})


TOKENS = {name: {"rows": 1, "ids": ["1;x"]} for name in ("base_only", "tuned_only", "padding")} | {
    "matched": 1,
    "moved": 1,
}
WRONG: list[tuple[Change, str]] = [
    (lambda whole: whole["base"].update(tied=True), f"one tensor serves as embedding and head, yet {EMBED} and {HEAD}"),
    (lambda whole: whole["base"].update(tied="no"), "base.tied: Input should be a valid boolean"),
    (lambda whole: whole["base"].update(digest="sha256:1"), r"base\.digest: String should match"),
    (lambda whole: whole["base"].update(digest=f"sha256:{'0' * 65}"), r"base\.digest: String should match"),
    (lambda whole: whole["base"].update(sample=None), r"base\.sample"),
    (lambda whole: whole["base"].pop("tokenizer_digest"), r"base\.tokenizer_digest is missing"),
    (lambda whole: whole.update(kind="lora"), "kind lora with tensors of the forms frames"),
    (lambda whole: whole.update(kind="lowrank"), "kind lowrank without the field lowrank"),
    (lambda whole: whole.update(lowrank={"budget": 0.1, "error": 0.1}), "kind dense with the field lowrank"),
    (lambda whole: whole.update(lowrank={"budget": 1.0, "error": 0.1}), r"lowrank\.budget: Input should be less"),
    (lambda whole: whole.update(lowrank={"budget": 0.0, "error": 0.1}), r"lowrank\.budget: Input should be greater"),
    (lambda whole: whole.update(lowrank={"budget": 0.1, "error": -1.0}), r"lowrank\.error: Input should be greater"),
    (lambda whole: whole.update(tokens={EMBED: TOKENS}), r"base_only\.ids\.0: String"),
    (lambda whole: whole.update(ignored={"patterns": [], "names": {"a": {"other": []}}}), r"ignored\.names"),
    (lambda whole: whole.update(created_by="x" * 1001), "created_by: String should have at most 1000"),
    (lambda whole: whole.update(trainer={"name": "x", "facts": {"own": 1}, "not_known": [], "unreadable": []}),
     r"unknown field trainer\.facts\.own"),
    (lambda whole: whole.update(trainer={"name": "x", "facts": {}, "not_known": [], "unreadable": [], "own": 1}),
     r"unknown field trainer\.own"),
    (lambda whole: whole.update(tensors={}), "tensors: Dictionary should have at least 1 item"),
    (lambda whole: whole.update(format="x" * 5000), "delta format 'x{79}, expected 2"),
    (lambda whole: whole.update(more=1), "unknown field more"),
    (lambda whole: whole.update(waivers=["all"]), "waivers.0: Input should be 'unrelated'"),
    (lambda whole: whole.update(trainer={"name": "x", "facts": {"steps": "9"}, "not_known": [], "unreadable": []}),
     r"trainer\.facts\.steps: Input should be a valid integer"),
    (lambda whole: whole.update(trainer={"name": "x", "facts": {"first_loss": {}}, "not_known": [], "unreadable": []}),
     r"trainer\.facts\.first_loss"),
    (lambda whole: whole.update(ignored={"patterns": "*", "names": {}}), r"ignored\.patterns"),
    (lambda whole: whole.update(tokens={EMBED: {"matched": -1}}), "tokens"),
    (entry(W, shape=[1 << 40, 1 << 40]), "larger than any file"),
    (entry(W, shape=[0, 1 << 62, 1 << 62]), "larger than any file"),
    (entry(W, shape=[1 << 70]), r"shape\.0: Input should be less than"),
    (entry(W, shape=[1 << 61, 1]), "larger than any file"),
    (entry(W, shape=[1, 1 << 40]), "rows of more than 67108864 elements"),
    (entry(W, shape=[-8, -30]), r"shape\.0: Input should be greater"),
    (entry(W, shape=[8.0, 30]), r"shape\.0: Input should be a valid integer"),
    (entry(W, shape=[True, 30]), r"shape\.0: Input should be a valid integer"),
    (entry(W, shape=[1] * 17), "at most 16 items"),
    (entry(W, shape=[8, 31]), "is not the head of a frame"),
    (entry(W, shape=[2, 3]), "no sample of 6 values of tensor"),
    (entry(W, norm=-1.0), "norm: Input should be greater"),
    (entry(W, norm="1"), "norm: Input should be a valid number"),
    (entry(W, norm="1" * 5000), "norm: Input should be a valid number"),
    (entry(W, form="zip" * 2000), "zip"),
    (entry(W, digest=f"sha256:{'g' * 64}"), "digest: String should match"),
    (entry(W, digest="0"), "digest: String should match"),
    (renamed("a\x7f"), "a control character in a name"),
    (entry(W, rank=3), r"unknown field .*rank"),
    (factored(rank=0), "rank: Input should be greater"),
    (factored(rank=131_073), "rank: Input should be less than or equal to 131072"),
    (factored(scaling=0.0), "scaling: Input should be greater"),
    (factored(error=-1.0), "error: Input should be greater"),
    (factored(rank=True), "rank: Input should be a valid integer"),
    (factored(scaling=-1.0), "scaling: Input should be greater"),
    (factored(scaling=1e39), "scaling: Input should be less"),
    (factored(shape=[8]), "of a product of two factors"),
    (renamed("a\0b"), "control character"),
    (renamed("a\x85b"), "control character"),
    (renamed("a\nb"), "control character"),
    (renamed("a" * 2000), "at most 1024 characters"),
    (renamed("other"), "tensor"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_certificate_says_only_what_can_be(delta: Path, change: Change, said: str) -> None:
    whole = json.loads((delta / "delta.json").read_bytes())
    change(whole)
    (delta / "delta.json").write_bytes(canonical_json(whole))
    with pytest.raises(DeltaError, match=said) as caught:
        open_delta(delta).read(W)
    assert str(delta) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not {"\n", "\0"} & set(str(caught.value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lambda raw: raw.replace(b'"norm":', b'"norm":NaN,"x":', 1), "NaN is not a JSON number"),
        (lambda raw: raw.replace(b'"norm":', b'"norm":1e999,"x":', 1), "more than float64 can hold"),
        (lambda raw: raw.replace(b'"format":2', b'"format":2,"format":2'), "duplicate key"),
        (lambda raw: b"[" * 100_000, "not readable as JSON"),
        (lambda raw: b"[]", "delta format"),
        (lambda raw: raw + b"\n", "not canonical JSON"),
    ],
)
def test_a_certificate_is_json_of_one_form(delta: Path, text: Callable[[bytes], bytes], said: str) -> None:
    (delta / "delta.json").write_bytes(text((delta / "delta.json").read_bytes()))
    with pytest.raises(DeltaError, match=said):
        open_delta(delta)


@pytest.mark.parametrize("name", ["delta.json", "dense.safetensors", "base.safetensors", "notes"])
def test_a_delta_has_its_own_files(delta: Path, tmp_path: Path, name: str) -> None:
    if (delta / name).exists():
        (delta / name).rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").touch()
    (delta / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeltaError, match="a link that leads out"):
        open_delta(delta)
    (delta / name).unlink()
    os.mkfifo(delta / name)
    with pytest.raises(DeltaError, match="pipe, socket or device"):
        open_delta(delta)


@pytest.mark.parametrize("odd", ["more", "sample.long", "token_marks"])
def test_the_sample_holds_nothing_else(delta: Path, odd: str) -> None:
    file, held = delta / "base.safetensors", open_safetensors(delta / "base.safetensors")
    arrays = {name: held.read(name) for name in held.names} | {odd: np.zeros(65, np.float32)}
    layout = {name: ("F32", array.shape) for name, array in arrays.items()}
    file.unlink()
    write_safetensors(file, build_header(layout), lambda name: iter([arrays[name]]))
    whole = json.loads((delta / "delta.json").read_bytes())
    whole["base"]["sample"] = file_digest(file)
    (delta / "delta.json").write_bytes(canonical_json(whole))
    with pytest.raises(DeltaError, match=f"tensor {odd} is F32 .*expected token marks and samples"):
        open_delta(delta)


@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [1, 4]])
def test_exceptions_of_a_frame_rise_within_it(positions: list[int]) -> None:
    body = bytes(8) + np.array(positions, "<u4").tobytes() + bytes(8)
    with pytest.raises(DeltaError, match="exceptions do not rise within 4 elements"):
        decode(FRAME.pack(1, 0, 0, 4, 8, 2), memoryview(body), np.zeros(4, np.float32), "here")


@pytest.mark.parametrize(
    "names", [[EMBED, "encoder.shared.weight", HEAD], ["model.embed_tokens_per_layer.weight", HEAD]]
)
def test_a_tie_is_of_one_embedding_and_one_head(delta: Path, names: list[str]) -> None:
    whole = json.loads((delta / "delta.json").read_bytes())
    whole["base"]["tied"] = True
    whole["tensors"] = dict.fromkeys(names, whole["tensors"][EMBED])
    (delta / "delta.json").write_bytes(canonical_json(whole))
    assert sorted(read_certificate(delta).fields["tensors"]) == sorted(names)


def test_the_delta_itself_is_taken(delta: Path, tmp_path: Path) -> None:
    tuned, base = open_checkpoint(tmp_path / "tuned"), open_checkpoint(tmp_path / "base")
    np.testing.assert_array_equal(open_delta(delta).read(W), tuned.read(W) - base.read(W))
