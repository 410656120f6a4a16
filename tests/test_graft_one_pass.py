"""One-pass grafts of Base, tuned model and Instruct: the same files as `extract` and `graft` make."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.cli import main
from shadowft_core.delta import Difference, extract
from shadowft_core.delta import open_difference as difference
from shadowft_core.errors import (
    CheckpointError,
    GraftError,
    MisfitError,
    UnrelatedError,
    ZeroDeltaError,
)
from shadowft_core.files import canonical_json
from shadowft_core.grafting import Merge, Options, graft, grafted_tensors
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import make_pair, shifted, write_model, write_weights
from tests.test_graft import BF16, F16, F32, Q, bits, make, noise, refused, tensors_of
from tests.test_graft_experts import BASE as EXPERTS_BASE
from tests.test_graft_experts import INSTRUCT as EXPERTS_INSTRUCT
from tests.test_graft_experts import TUNED as EXPERTS_TUNED
from tests.test_graft_experts import save as save_experts
from tests.test_graft_tokens import EMBEDDING, HEAD, near, save, values, words

DOWN = "model.layers.1.mlp.down_proj.weight"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_as_two_steps(
    tmp: Path, instruct: Path, base: Path, tuned: Path, scale: float = 1.0, **options: Any
) -> dict[str, Any]:
    """Graft in both ways and compare every file. Returns the receipt."""
    extract(base, tuned, tmp / "stored")
    kept = graft(instruct, [(tmp / "stored", scale)], tmp / "two", Options(**options))
    made = graft(instruct, [(difference(base, tuned), scale)], tmp / "one", Options(**options))
    digests = {"base": open_checkpoint(base).digest(), "tuned": open_checkpoint(tuned).digest()}
    assert made == kept | {"deltas": [digests | {"scale": scale}]}
    one, two = files(tmp / "one"), files(tmp / "two")
    assert json.loads(one.pop("recipe.json")) == made
    assert two.pop("recipe.json") != canonical_json(made)
    receipt = same_receipt(one.pop("receipt.json"), two.pop("receipt.json"))
    assert one == two, "weights, index, config and tokenizer"
    assert open_checkpoint(tmp / "one").digest() == made["digest"]
    assert bits(dict(grafted_tensors(instruct, [(difference(base, tuned), scale)], Options(**options)))) == bits(
        tensors_of(tmp / "two")
    )
    return receipt


def same_receipt(one: bytes, two: bytes) -> dict[str, Any]:
    """Require equal receipts, except for the last digits of norms: their float32 sums have parts of another length."""
    receipt, other = (json.loads(text) for text in (one, two))
    norms = [{"overall": found.pop("retention")} | found.pop("grafted") for found in (receipt, other)]
    # by the digest of the delta, which a graft in one pass does not store
    assert list(receipt.get("trained", {}).values()) == list(other.pop("trained", {}).values())
    assert {name: value for name, value in receipt.items() if name != "trained"} == other
    assert norms[0].keys() == norms[1].keys()
    for name, kept in norms[0].items():
        assert kept == pytest.approx(norms[1][name], rel=1e-5), name
    return {**receipt, "grafted": norms[0].keys() - {"overall"}}


def written(folder: Path, dtype: Any = BF16, shards: int = 2) -> tuple[Path, Path, Path]:
    """Instruct, Base and tuned model; only two of the tensors were tuned, and some weights are -0.0."""
    base, instruct, tuned = make(np.dtype(dtype))
    for name, weights in instruct.items():
        weights.reshape(-1)[:3] = -0.0
        if name not in (Q, DOWN):
            tuned[name] = base[name]
    both = {"instruct": instruct, "base": base, "tuned": tuned}
    instruct_folder, *others = (write_model(folder / name, tensors, shards) for name, tensors in both.items())
    return instruct_folder, others[0], others[1]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_one_pass_gives_the_same_bits(tmp_path: Path, dtype: Any, shards: int, scale: float) -> None:
    instruct, base, tuned = written(tmp_path, dtype, shards)
    receipt = same_as_two_steps(tmp_path, instruct, base, tuned, scale)
    assert set(receipt["grafted"]) == {Q, DOWN}
    assert set(receipt["untouched"].values()) == {"no delta"}
    found, before = tensors_of(tmp_path / "one"), tensors_of(instruct)
    for name in receipt["untouched"]:
        assert np.signbit(found[name].reshape(-1)[:3]).all(), "a zero keeps its sign"
        assert bits({"": found[name]}) == bits({"": before[name]})
    assert not np.array_equal(found[Q], before[Q])


def test_models_may_differ_in_dtypes_and_shards(tmp_path: Path) -> None:
    base, instruct, tuned = make(BF16)
    write_model(tmp_path / "base", base, 3)
    write_model(tmp_path / "tuned", {n: a.astype(F32) + noise(8, 1e-5)[n] for n, a in tuned.items()})
    write_model(tmp_path / "instruct", {n: a.astype(F16) for n, a in instruct.items()}, 2)
    same_as_two_steps(tmp_path, tmp_path / "instruct", tmp_path / "base", tmp_path / "tuned", 0.7)


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "linear"},
        {"scope": ["*layers.1*"]},
        {"scale_for": [("*down_proj*", -0.25)]},
        {"scale_for": [("*down_proj*", 0.0)]},
        {"dtype": "float32"},
    ],
    ids=str,
)
def test_scope_scales_and_output_dtype_give_the_same_files(tmp_path: Path, options: dict[str, Any]) -> None:
    same_as_two_steps(tmp_path, *written(tmp_path), **options)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_folder_with_tokenizer_and_template_gives_the_same_files(tmp_path: Path, tied: bool) -> None:
    pair = make_pair(tmp_path, "qwen3", tied=tied)
    shifted(pair.base, tmp_path / "tuned", 0.001, seed=2)
    receipt = same_as_two_steps(tmp_path, pair.instruct, pair.base, tmp_path / "tuned")
    assert (HEAD in open_checkpoint(pair.instruct)) is not tied
    assert EMBEDDING in receipt["grafted"]


def test_a_tied_pair_changes_embedding_and_head_of_an_untied_instruct(tmp_path: Path) -> None:
    base = {EMBEDDING: values(1, 90)}
    tuned = {EMBEDDING: near(base[EMBEDDING], seed=61)}
    own = {EMBEDDING: near(base[EMBEDDING]), HEAD: near(base[EMBEDDING], seed=71)}
    folders = [save(tmp_path / "instruct", own, words(90))]
    folders += [save(tmp_path / n, t, words(90), tied=True) for n, t in (("base", base), ("tuned", tuned))]
    assert set(same_as_two_steps(tmp_path, *folders)["grafted"]) == {EMBEDDING, HEAD}


def test_two_tensors_of_one_pair_may_be_read_at_once(tmp_path: Path) -> None:
    """A tied Instruct accepts a separate head only if it changed like the embedding: both are read at once."""
    embedding, head, moves = values(1, 90), values(1, 90), values(61, 90, size=0.003).astype(F32)
    instruct = save(tmp_path / "instruct", {EMBEDDING: near(embedding)}, words(90), tied=True)
    base = save(tmp_path / "base", {EMBEDDING: embedding, HEAD: head}, words(90))
    alike = (embedding.astype(F32) + moves).astype(BF16)
    apart = (embedding.astype(F32) - moves).astype(BF16)
    for name, moved in (("alike", alike), ("apart", apart)):
        save(tmp_path / name, {EMBEDDING: alike, HEAD: moved}, words(90))
    same_as_two_steps(tmp_path, instruct, base, tmp_path / "alike")
    refused(MisfitError, f"{HEAD} is a separate head", instruct, [(difference(base, tmp_path / "apart"), 1.0)])


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_rows_are_matched_by_token(tmp_path: Path, scale: float) -> None:
    ours = ["<|new|>", *(f"token{number}" for number in np.random.default_rng(0).permutation(90)), None, None]
    base = {EMBEDDING: values(1, 90), HEAD: values(2, 90)}
    tuned = {name: near(weights, seed=61) for name, weights in base.items()}
    own = {name: near(np.resize(weights, (93, weights.shape[1]))) for name, weights in base.items()}
    folders = [save(tmp_path / "instruct", own, ours)]
    folders += [save(tmp_path / n, t, words(90)) for n, t in (("base", base), ("tuned", tuned))]
    receipt = same_as_two_steps(tmp_path, *folders, scale=scale)
    assert receipt["tokens"][EMBEDDING]["matched"] == 90
    assert receipt["tokens"][EMBEDDING]["padding"]["rows"] == 2


@pytest.mark.parametrize("fused", [False, True], ids=["to fused", "from fused"])
def test_experts_in_the_other_layout_give_the_same_files(tmp_path: Path, fused: bool) -> None:
    instruct = save_experts(tmp_path / "instruct", "mixtral", not fused, EXPERTS_INSTRUCT)
    base = save_experts(tmp_path / "base", "mixtral", fused, EXPERTS_BASE)
    tuned = save_experts(tmp_path / "tuned", "mixtral", fused, EXPERTS_TUNED)
    same_as_two_steps(tmp_path, instruct, base, tuned)


def second(folder: Path, base: Path) -> Path:
    """Another model tuned from the same Base."""
    tuned = {n: (a.astype(F32) + noise(9, 0.002)[n]).astype(BF16) for n, a in tensors_of(base).items()}
    return write_model(folder, tuned)


@pytest.mark.parametrize("merge", [Merge(), Merge("ties", 0.3)], ids=["sum", "ties"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.6, 0.4)], ids=str)
def test_a_stored_delta_or_another_pair_may_be_added(tmp_path: Path, merge: Merge, scales: tuple[float, float]) -> None:
    instruct, base, tuned = written(tmp_path)
    other = second(tmp_path / "other", base)
    for name, folder in (("first", tuned), ("second", other)):
        extract(base, folder, tmp_path / name)
    stored = [tmp_path / "first", tmp_path / "second"]
    expected = graft(instruct, list(zip(stored, scales, strict=True)), tmp_path / "stored", Options(merge=merge))
    pairs = [difference(base, tuned), difference(base, other)]
    for deltas in ([stored[0], pairs[1]], [pairs[0], stored[1]], pairs):
        made = graft(instruct, list(zip(deltas, scales, strict=True)), tmp_path / "made", Options(merge=merge))
        assert made["digest"] == expected["digest"]
        assert [set(entry) for entry in made["deltas"]] == [
            {"base", "tuned", "scale"} if isinstance(delta, Difference) else {"digest", "scale"} for delta in deltas
        ]
        same_receipt(*((tmp_path / name / "receipt.json").read_bytes() for name in ("made", "stored")))


Shadowft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shadowft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shadowft:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shadowft", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def test_the_verb_grafts_in_one_pass(tmp_path: Path, shadowft: Shadowft) -> None:
    instruct, base, tuned = written(tmp_path)
    out = tmp_path / "out"
    words: list[object] = ["graft", "--instruct", instruct, "--out", out, "--scale", "0.5"]
    pair: list[object] = ["--base", base, "--tuned", tuned]
    code, said, _ = shadowft(*words, *pair, "--json")
    extract(base, tuned, tmp_path / "stored")
    stored = graft(instruct, [(tmp_path / "stored", 0.5)], tmp_path / "two")
    assert (code, json.loads(said)["digest"]) == (0, stored["digest"])
    shutil.rmtree(out)

    def refused(code: int, text: str, *more: object) -> None:
        done = shadowft(*words, *more)
        assert done[0] == code, done
        assert text in " ".join(done[2].replace("│", "").split()), done
        assert not list(tmp_path.glob("*out*")), "something was written"

    for half in (["--base", base], ["--tuned", tuned], ["--base", base, "--delta", tmp_path / "stored"], []):
        refused(2, "pass --delta, or --base and --tuned together", *half)
    refused(ZeroDeltaError.exit_code, "the delta is zero", "--base", base, "--tuned", base)
    refused(GraftError.exit_code, "dare needs a stored", *pair, "--merge", "dare", "--density", "0.5", "--seed", "1")
    refused(CheckpointError.exit_code, "nowhere", "--base", base, "--tuned", tmp_path / "nowhere")
    extract(base, second(tmp_path / "other", base), tmp_path / "stored")
    code, said, _ = shadowft(*words[:-1], "0.4", *pair, "--delta", f"{tmp_path / 'stored'}@0.6", "--json")
    assert code == 0
    assert [entry["scale"] for entry in json.loads(said)["deltas"]] == [0.6, 0.4]


def test_unrelated_is_waived_by_name(tmp_path: Path, shadowft: Shadowft) -> None:
    instruct, base, tuned = written(tmp_path)
    write_weights(tuned, tensors_of(tuned) | {DOWN: tensors_of(tuned)[DOWN][::-1].copy()})
    words = ["graft", "--instruct", instruct, "--base", base, "--tuned", tuned, "--scale", 1, "--out", tmp_path / "out"]
    assert shadowft(*words)[0] == UnrelatedError.exit_code
    assert not (tmp_path / "out").exists()
    code, said, _ = shadowft(*words, "--unrelated", "--json")
    assert (code, json.loads(said)["waivers"]) == (0, ["unrelated"])


def test_the_receipt_names_both_checkpoints(tmp_path: Path, shadowft: Shadowft) -> None:
    instruct, base, tuned = written(tmp_path)
    recipe = graft(instruct, [(difference(base, tuned), 0.5)], tmp_path / "out")
    [entry] = recipe["deltas"]
    code, said, _ = shadowft("receipt", tmp_path / "out")
    assert code == 0
    assert f"  + 0.5 * ({entry['tuned']} - {entry['base']}), no delta stored" in said
    assert json.loads(shadowft("receipt", tmp_path / "out", "--json")[1])["deltas"] == [entry]


def test_a_one_pass_recipe_cannot_be_regrafted(tmp_path: Path, shadowft: Shadowft) -> None:
    instruct, base, tuned = written(tmp_path)
    graft(instruct, [(difference(base, tuned), 0.5)], tmp_path / "out")
    newer = write_model(tmp_path / "newer", {n: a * BF16.type(1.5) for n, a in tensors_of(instruct).items()})
    extract(base, tuned, tmp_path / "stored")
    recipe, made = tmp_path / "out" / "recipe.json", tmp_path / "made"
    code, _, said = shadowft(
        *("regraft", "--recipe", recipe, "--instruct", newer, "--delta", tmp_path / "stored", "--out", made)
    )
    assert code == GraftError.exit_code
    assert f"{recipe}: adds sha256:" in said
    assert "without a stored delta, so the model cannot be rebuilt; run extract and publish, and graft" in said
    assert not made.exists()
