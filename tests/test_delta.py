"""Deltas are exact and certified, and refused where they would be inexact."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.delta import Storage, extract, open_delta, step
from shadowft_core.errors import (
    CheckpointError,
    DeltaError,
    NotFiniteError,
    QuantisedError,
    ShadowError,
    ShapeMismatchError,
    TensorMissingError,
    UnrelatedError,
    WrongBaseError,
    ZeroDeltaError,
)
from shadowft_core.files import canonical_json
from shadowft_core.weights import open_checkpoint, open_safetensors
from tests.fixtures.models import Pair, shifted, write_model

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)
BASE = {
    "model.embed_tokens.weight": RNG.standard_normal((40, 8)).astype(BF16),
    "model.layers.0.self_attn.q_proj.weight": RNG.standard_normal((300, 700)).astype(BF16),
    "model.norm.weight": RNG.standard_normal(8).astype(BF16),
    "steps": np.array([1, 2], np.int64),
}
Q = "model.layers.0.self_attn.q_proj.weight"
TUNED = {
    name: array + np.float32(1e-3) * RNG.standard_normal(array.shape).astype(np.float32)
    if array.dtype == BF16 and name != "model.norm.weight"
    else array
    for name, array in BASE.items()
}


def refused(kind: type[ShadowError], message: str, *folders: Path) -> None:
    """Require that extraction raises this class in one line and leaves nothing behind."""
    out = folders[0].parent / "refused"
    with pytest.raises(kind, match=message) as caught:
        extract(*folders, out)
    assert "\n" not in str(caught.value)
    assert not list(out.parent.glob("*refused*"))


def test_a_dense_delta_is_the_float32_difference(tmp_path: Path) -> None:
    base, tuned = write_model(tmp_path / "base", BASE), write_model(tmp_path / "tuned", TUNED, shards=2)
    extract(base, tuned, tmp_path / "delta")
    delta = open_delta(tmp_path / "delta")
    assert set(delta.names) == {"model.embed_tokens.weight", Q}, "only what changed is stored"
    for name in delta.names:
        expected = TUNED[name] - BASE[name].astype(np.float32)
        assert delta.read(name).dtype == np.float32
        np.testing.assert_array_equal(delta.read(name), expected)
        assert delta.certificate["tensors"][name]["norm"] == pytest.approx(np.linalg.norm(expected), rel=1e-6)
    assert delta.kind == "dense"
    assert delta.base_digest == open_checkpoint(base).digest()
    assert delta.certificate["train"] is None


def test_a_matrix_that_changed_by_more_than_its_norm_needs_a_waiver(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", BASE)
    stranger = write_model(tmp_path / "stranger", BASE | {Q: RNG.standard_normal(BASE[Q].shape).astype(BF16)})
    refused(UnrelatedError, r"q_proj.*1\.4\d of \|weights\|.*or --unrelated", base, stranger)
    extract(base, stranger, tmp_path / "delta", unrelated=True)
    assert open_delta(tmp_path / "delta").certificate["waivers"] == ["unrelated"]
    extract(base, write_model(tmp_path / "tuned", TUNED), tmp_path / "delta")
    assert open_delta(tmp_path / "delta").certificate["waivers"] == []


@pytest.mark.parametrize("storage", ["compressed", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float32), np.dtype(np.float16)])
def test_every_storage_gives_the_same_exact_difference(tmp_path: Path, storage: Storage, dtype: np.dtype[Any]) -> None:
    models = {
        role: {n: a.astype(dtype) if a.dtype.kind != "i" else a for n, a in tensors.items()}
        for role, tensors in (("base", BASE), ("tuned", TUNED))
    }
    models["tuned"][Q][:2] = models["base"][Q][:2] * 3  # not exact in bfloat16
    models["tuned"][Q][250:] = models["base"][Q][250:]  # a part of zeros
    base, tuned = (write_model(tmp_path / role, tensors) for role, tensors in models.items())
    extract(base, tuned, tmp_path / "delta", storage)
    delta = open_delta(tmp_path / "delta")
    for name in delta.names:
        expected = models["tuned"][name].astype(np.float32) - models["base"][name].astype(np.float32)
        np.testing.assert_array_equal(delta.read(name), expected)
        part, stride = delta.parts(name), step(expected.shape)
        for number in reversed(range(-(-expected.size // stride))):
            np.testing.assert_array_equal(part(number), expected.reshape(-1)[number * stride : (number + 1) * stride])


def test_compression_of_a_typical_update_stays_below_35_percent(tmp_path: Path) -> None:
    weights = (0.02 * RNG.standard_normal((1024, 1024))).astype(BF16)
    moved = (weights.astype(np.float32) + 1e-4 * RNG.standard_normal(weights.shape).astype(np.float32)).astype(BF16)
    base, tuned = write_model(tmp_path / "base", {Q: weights}), write_model(tmp_path / "tuned", {Q: moved})
    extract(base, tuned, tmp_path / "delta")
    assert (tmp_path / "delta" / "dense.safetensors").stat().st_size < 0.35 * weights.nbytes


def test_the_same_inputs_give_the_same_delta(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", BASE)
    extract(base, write_model(tmp_path / "one", TUNED), tmp_path / "d1")
    extract(base, write_model(tmp_path / "many", TUNED, shards=3), tmp_path / "d2")
    files = [{f.name: f.read_bytes() for f in (tmp_path / d).iterdir()} for d in ("d1", "d2")]
    assert files[0] == files[1], "the shards of the tuned model must not matter"


def test_a_tuned_model_that_gives_no_delta_is_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", BASE)

    def tuned(**changes: Any) -> Path:
        shutil.rmtree(tmp_path / "tuned", ignore_errors=True)
        return write_model(tmp_path / "tuned", {n: a for n, a in (TUNED | changes).items() if a is not None})

    poisoned = TUNED[Q].copy()
    poisoned[299, 699] = np.nan
    refused(NotFiniteError, f"{Q}.*not finite", base, tuned(**{Q: poisoned}))
    poisoned[299, 699] = np.inf
    refused(NotFiniteError, f"{Q}.*not finite", base, tuned(**{Q: poisoned}))
    refused(TensorMissingError, f"only .*base has {Q}", base, tuned(**{Q: None}))
    refused(TensorMissingError, "only .*tuned has extra", base, tuned(extra=np.zeros(2, np.float32)))
    refused(ShapeMismatchError, r"q_proj.*\(300, 700\).*\(700, 300\)", base, tuned(**{Q: TUNED[Q].T}))
    refused(QuantisedError, "steps is I64.*changed", base, tuned(steps=np.array([1, 3])))
    refused(ShapeMismatchError, "steps.*has", base, tuned(steps=np.array([1])))
    refused(ZeroDeltaError, "the delta is zero", base, tuned(**BASE))
    refused(QuantisedError, "is BF16 in .* U8 in .*dequantise", base, tuned(**{Q: np.ones((300, 700), np.uint8)}))
    refused(CheckpointError, "no such folder", base, tmp_path / "nowhere")


def test_a_tied_head_is_one_tensor(tmp_path: Path) -> None:
    embedding = "model.embed_tokens.weight"
    base = write_model(tmp_path / "base", BASE, tie_word_embeddings=True)
    stored = write_model(tmp_path / "stored", TUNED | {"lm_head.weight": TUNED[embedding]}, tie_word_embeddings=True)
    extract(base, stored, tmp_path / "delta")
    assert set(open_delta(tmp_path / "delta").names) == {embedding, Q}
    torn = write_model(tmp_path / "torn", TUNED | {"lm_head.weight": BASE[embedding]}, tie_word_embeddings=True)
    refused(CheckpointError, "ties lm_head.weight", base, torn)
    untied = write_model(tmp_path / "untied", TUNED | {"lm_head.weight": TUNED[embedding]})
    refused(TensorMissingError, "has lm_head.weight", base, untied)


def test_a_delta_records_its_training(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", BASE)
    write_model(tmp_path / "run" / "model", TUNED)
    facts = {"model_digest": open_checkpoint(base).digest(), "data_digest": "sha256:d", "seed": 7}
    (tmp_path / "run" / "train.json").write_bytes(canonical_json(facts))
    extract(base, tmp_path / "run", tmp_path / "delta")
    train = open_delta(tmp_path / "delta").certificate["train"]
    assert (train["data_digest"], train["seed"]) == ("sha256:d", 7)
    other = write_model(tmp_path / "other", BASE | {"model.norm.weight": np.ones(8, BF16)})
    refused(WrongBaseError, "was tuned from sha256:.* is sha256:", other, tmp_path / "run")


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    base, tuned = write_model(tmp_path / "base", BASE), write_model(tmp_path / "tuned", TUNED)
    extract(base, tuned, tmp_path / "delta")
    return tmp_path / "delta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=1), "delta format 1, expected 2"),
        (lambda d: d.update(kind="sparse"), "kind: Input should be 'lora', 'dense' or 'lowrank', found 'sparse'"),
        (lambda d: d["tensors"].pop(Q), "q_proj"),
        (lambda d: d["tensors"][Q].update(shape=[700, 300]), "is not the head of a frame of"),
        (lambda d: d["tensors"][Q].pop("digest"), "digest is missing"),
        (lambda d: d.pop("base"), "field base is missing"),
    ],
)
def test_a_changed_certificate_is_refused(dense: Path, change: Callable[[Any], None], message: str) -> None:
    certificate = json.loads((dense / "delta.json").read_bytes())
    change(certificate)
    (dense / "delta.json").write_bytes(canonical_json(certificate))
    with pytest.raises(DeltaError, match=message):
        open_delta(dense).read(Q)


def test_digests_detect_damage(dense: Path) -> None:
    with (dense / "dense.safetensors").open("r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)
        file.seek(-3, 2)
        file.write(bytes([byte[0] ^ 1]))
    delta = open_delta(dense)
    damaged = delta.names[-1] if delta.names[-1] == Q else Q
    with pytest.raises(DeltaError, match=r"delta\.json has sha256:"):
        delta.read(damaged)
    (dense / "delta.json").write_bytes((dense / "delta.json").read_bytes() + b"\n")
    with pytest.raises(DeltaError, match="not canonical"):
        open_delta(dense)


def test_a_full_training_of_every_family_gives_a_dense_delta(family_pair: Callable[..., Pair], tmp_path: Path) -> None:
    for family in ("llama", "qwen3", "phi3"):
        pair = family_pair(family)
        shifted(pair.base, tmp_path / family, 0.01, seed=3, dtype=np.dtype(np.float32))
        extract(pair.base, tmp_path / family, tmp_path / f"{family}-delta")
        assert set(open_delta(tmp_path / f"{family}-delta").names) == set(open_checkpoint(pair.base).names)


def test_a_folder_with_two_results_is_ambiguous(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", BASE)
    write_model(tmp_path / "run" / "model", TUNED)
    (tmp_path / "run" / "adapter").mkdir()
    refused(DeltaError, "both adapter/ and model/", base, tmp_path / "run")


def test_known_digests_are_compared_with_the_certificate_without_reading(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    shifted(tiny_llama_pair.base, tmp_path / "tuned", 1e-3, seed=8)
    extract(tiny_llama_pair.base, tmp_path / "tuned", tmp_path / "delta")
    file = tmp_path / "delta" / "dense.safetensors"
    found = open_safetensors(file)
    known = {
        (file.name, found.info(name).offset, found.info(name).nbytes): found.tensor_digest(name) for name in found.names
    }
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # known digests are trusted
    open_delta(tmp_path / "delta").verify(known)
    with pytest.raises(DeltaError, match=r"dense\.safetensors: tensor"):
        open_delta(tmp_path / "delta").verify()
    wrong = dict.fromkeys(known, "sha256:" + "0" * 64)
    with pytest.raises(DeltaError, match=r"dense\.safetensors: tensor"):
        open_delta(tmp_path / "delta").verify(wrong)
