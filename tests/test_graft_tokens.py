"""Rows of embeddings and heads are matched by token; tied and untied heads in either model."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import MisfitError, ShapeMismatchError, TokenMismatchError
from shadowft_core.files import canonical_json
from shadowft_core.grafting import Merge, Options, graft, grafted_tensors
from shadowft_core.weights import build_header, write_safetensors
from tests.fixtures.models import write_model
from tests.test_graft import BF16, F32, Tensors, bits, refused, tensors_of

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
WIDTH = 5000  # 26 rows to a part, so that runs cross parts


def words(count: int) -> list[str | None]:
    return [f"token{number}" for number in range(count)]


def values(seed: int, rows: int, size: float = 0.02) -> np.ndarray:
    return (size * np.random.default_rng(seed).standard_normal((rows, WIDTH))).astype(BF16)


def save(folder: Path, tensors: Tensors, tokens: Sequence[str | None] | None, tied: bool = False) -> Path:
    """A model folder with a norm, a matrix that all models share, and a minimal tokenizer.json."""
    shared = {"model.layers.0.mlp.up_proj.weight": values(50, 4), NORM: np.ones(WIDTH, BF16)}
    write_model(folder, tensors | shared, tie_word_embeddings=tied)
    if tokens is not None:
        vocab = {token: number for number, token in enumerate(tokens) if token is not None}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
    return folder


def delta_of(folder: Path, base: Tensors, tokens: Sequence[str | None] | None, tied: bool = False) -> Path:
    """Change every row of the given tensors, each by a different amount."""
    tuned = {
        n: (a.astype(F32) + values(60, *a.shape[:1], size=0.003).astype(F32)).astype(BF16) for n, a in base.items()
    }
    save(folder / "base", base, tokens, tied)
    extract(folder / "base", save(folder / "tuned", tuned, tokens, tied), folder / "delta")
    return folder / "delta"


def near(rows: np.ndarray, seed: int = 70) -> np.ndarray:
    return (rows.astype(F32) + values(seed, len(rows), size=0.0005).astype(F32)).astype(BF16)


def by_token(
    weights: np.ndarray, ours: Sequence[str | None], delta: np.ndarray, theirs: Sequence[str | None], scale: float
) -> np.ndarray:
    """The definition: a row gets the delta of its token's row, or keeps its bits."""
    result = weights.copy()
    at = {token: row for row, token in enumerate(theirs) if token is not None and row < len(delta)}
    for row, token in enumerate(ours[: len(weights)]):
        if token in at:
            result[row] = (weights[row].astype(F32) + F32.type(scale) * delta[at[token]]).astype(BF16)
    return result


SHUFFLED = [f"token{number}" for number in np.random.default_rng(0).permutation(90)]
CASES: dict[str, tuple[Sequence[str | None], int, Sequence[str | None], int]] = {
    # Base: tokens and rows; Instruct: tokens and rows
    "more padding": (words(90), 90, words(90), 128),
    "less padding": (words(90), 128, words(90), 96),
    "added tokens": (words(90), 96, [*words(90), "<|a|>", "<|b|>"], 96),
    "fewer tokens": (words(90), 90, words(80), 80),
    "permuted": (words(90), 90, SHUFFLED, 90),
    "one inserted": (words(90), 90, [*words(30), "<|new|>", *words(90)[30:]], 91),
    "one renamed": (words(90), 90, [*words(30), "<|new|>", *words(90)[31:]], 90),
    "holes": ([*words(30), None, None, *words(90)[32:]], 96, words(90), 90),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_matched_by_token(tmp_path: Path, case: str) -> None:
    theirs, base_rows, ours, rows = CASES[case]
    base = {EMBEDDING: values(1, base_rows), HEAD: values(2, base_rows)}
    own = {n: near(np.resize(a, (rows, WIDTH))) for n, a in base.items()}
    for array in own.values():
        array[:, 0] = F32.type(-0.0)  # kept rows keep every bit, also a zero's sign
    delta = delta_of(tmp_path, base, theirs)
    instruct = save(tmp_path / "instruct", own, ours)
    recipe = graft(instruct, [(delta, 0.7)], tmp_path / "out")
    expected = tensors_of(instruct) | {
        n: by_token(a, ours, open_delta(delta).read(n), theirs, 0.7) for n, a in own.items()
    }
    assert bits(tensors_of(tmp_path / "out")) == bits(expected)
    assert bits(dict(grafted_tensors(instruct, [(delta, 0.7)]))) == bits(expected)
    account = json.loads((tmp_path / "out" / "receipt.json").read_bytes())["tokens"]
    known, common = {t for t in theirs if t}, {t for t in theirs if t} & {t for t in ours if t}
    for name in (EMBEDDING, HEAD):
        assert account[name]["matched"] == len(common)
        assert account[name]["instruct_only"]["rows"] == len({t for t in ours if t} - known)
        assert account[name]["base_only"]["rows"] == len(known - common)
        assert account[name]["padding"]["rows"] == rows - len([t for t in ours if t])
    assert recipe["digest"] != recipe["instruct"]["digest"]


def test_the_receipt_names_the_ids(tmp_path: Path) -> None:
    delta = delta_of(tmp_path, {EMBEDDING: values(1, 90), HEAD: values(2, 90)}, words(90))
    ours = ["<|x|>", *words(40)[1:], "<|y|>", "<|z|>", *words(90)[42:], None, None]
    own = {EMBEDDING: near(values(1, 92)), HEAD: near(values(2, 92))}
    graft(save(tmp_path / "instruct", own, ours), [(delta, 1.0)], tmp_path / "out")
    account = json.loads((tmp_path / "out" / "receipt.json").read_bytes())["tokens"][HEAD]
    assert account == {
        "matched": 87,
        "moved": 0,
        "instruct_only": {"rows": 3, "ids": ["0", "40-41"]},
        "base_only": {"rows": 3, "ids": ["0", "40-41"]},
        "padding": {"rows": 2, "ids": ["90-91"]},
    }


@pytest.mark.parametrize("tokens", [words(90), None], ids=["same tokenizer", "no tokenizer"])
def test_an_equal_vocabulary_is_matched_by_number_with_its_padding(tmp_path: Path, tokens: Any) -> None:
    base = {EMBEDDING: values(1, 96), HEAD: values(2, 96)}
    delta = delta_of(tmp_path, base, tokens)
    instruct = save(tmp_path / "instruct", {n: near(a) for n, a in base.items()}, tokens)
    found = dict(grafted_tensors(instruct, [(delta, 1.0)]))
    for name in base:
        exact = tensors_of(instruct)[name].astype(F32) + open_delta(delta).read(name)
        assert bits({"": found[name]}) == bits({"": exact.astype(BF16)})


def test_rows_that_cannot_be_matched_are_refused(tmp_path: Path) -> None:
    base = {EMBEDDING: values(1, 90), HEAD: values(2, 90)}
    with_tokens, without = delta_of(tmp_path / "a", base, words(90)), delta_of(tmp_path / "b", base, None)
    own = {n: near(a) for n, a in base.items()}
    more = {n: near(np.resize(a, (96, WIDTH))) for n, a in base.items()}
    narrow = {n: a[:, :-1] for n, a in own.items()}
    twice = [*words(88), "token3", "token4"]
    for number, (kind, message, delta, tensors, tokens) in enumerate(
        [
            (TokenMismatchError, "90 rows, .* 90, and the Base has no tokenizer.json", without, own, words(90)),
            (TokenMismatchError, "90 rows, .* 96, and .*instruct.* has no tokenizer.json", without, more, None),
            (TokenMismatchError, "90 rows, .* 90, and .*instruct.* has no tokenizer.json", with_tokens, own, None),
            (TokenMismatchError, "no token in common", with_tokens, own, [f"other{n}" for n in range(90)]),
            (ShapeMismatchError, r"\(90, 5000\), .*\(90, 4999\)", with_tokens, narrow, words(90)),
        ]
    ):
        refused(kind, message, save(tmp_path / f"instruct{number}", tensors, tokens), [(delta, 1.0)])
    ambiguous = save(tmp_path / "ambiguous", own, None)
    unigram = {"model": {"vocab": [[token, -1.0] for token in twice]}}
    (ambiguous / "tokenizer.json").write_text(json.dumps(unigram))
    refused(TokenMismatchError, r"ids \[3, 88\] of the Instruct are the same token", ambiguous, [(with_tokens, 1.0)])
    # A tensor out of scope needs no tokens.
    graft(save(tmp_path / "fine", own, words(90)), [(with_tokens, 1.0)], tmp_path / "out", Options([HEAD]))


def test_a_tied_base_changes_embedding_and_head_of_an_untied_instruct(tmp_path: Path) -> None:
    base = {EMBEDDING: values(1, 90)}
    delta = delta_of(tmp_path, base, words(90), tied=True)
    own = {EMBEDDING: near(base[EMBEDDING]), HEAD: near(base[EMBEDDING], seed=71)}
    found = dict(grafted_tensors(save(tmp_path / "instruct", own, words(90)), [(delta, 0.7)]))
    moved = F32.type(0.7) * open_delta(delta).read(EMBEDDING)
    for name, weights in own.items():
        assert bits({"": found[name]}) == bits({"": (weights.astype(F32) + moved).astype(BF16)})


def test_an_untied_base_changes_a_tied_instruct_only_if_both_deltas_are_equal(tmp_path: Path) -> None:
    """The Instruct has one tensor for both, so it cannot take the delta of a head alone."""
    embedding, head = values(1, 90), values(2, 90)
    tied = save(tmp_path / "instruct", {EMBEDDING: near(embedding)}, words(90), tied=True)
    apart = delta_of(tmp_path / "apart", {EMBEDDING: embedding, HEAD: head}, words(90))
    refused(MisfitError, "lm_head.weight is a separate head", tied, [(apart, 1.0)])
    refused(MisfitError, "lm_head.weight is a separate head", tied, [(apart, 1.0)], scope=[HEAD])

    def extracted(name: str, *moved: str) -> Path:
        """A delta of exactly one value in column 0, the same in every moved tensor; exact in bfloat16."""
        base = {
            n: np.where(np.arange(WIDTH) == 0, F32.type(0.5), a).astype(BF16)
            for n, a in ((EMBEDDING, embedding), (HEAD, head))
        }
        tuned = {n: np.where((np.arange(WIDTH) == 0) & (n in moved), a + BF16.type(0.25), a) for n, a in base.items()}
        save(tmp_path / name / "base", base, words(90))
        extract(tmp_path / name / "base", save(tmp_path / name / "tuned", tuned, words(90)), tmp_path / name / "delta")
        return tmp_path / name / "delta"

    for name, moved in (("equal", (EMBEDDING, HEAD)), ("embedding", (EMBEDDING,))):
        delta = extracted(name, *moved)
        assert set(open_delta(delta).names) == set(moved)
        found = dict(grafted_tensors(tied, [(delta, 1.0)]))
        exact = tensors_of(tied)[EMBEDDING].astype(F32) + open_delta(delta).read(EMBEDDING)
        assert bits({"": found[EMBEDDING]}) == bits({"": exact.astype(BF16)})
        assert HEAD not in found
    refused(MisfitError, "is a separate head", tied, [(extracted("head", HEAD), 1.0)])
    both = tmp_path / "equal" / "delta"
    refused(MisfitError, "both need the same scale", tied, [(both, 1.0)], scope=[HEAD])
    refused(MisfitError, "both need the same scale", tied, [(both, 1.0)], scale_for=[(HEAD, 0.5)])


@pytest.mark.parametrize("rows", [90, 96])
def test_a_tied_file_stays_tied_stored_head_or_not(tmp_path: Path, rows: int) -> None:
    delta = delta_of(tmp_path, {EMBEDDING: values(1, 90)}, words(90), tied=True)
    own = near(np.resize(values(1, 90), (rows, WIDTH)))
    for name, tensors in {"absent": {EMBEDDING: own}, "stored": {EMBEDDING: own, HEAD: own}}.items():
        instruct = save(tmp_path / name, tensors, words(90), tied=True)
        out = dict(grafted_tensors(instruct, [(delta, 1.0)]))
        assert set(out) == set(tensors_of(instruct))
        assert bits({"": out.get(HEAD, out[EMBEDDING])}) == bits({"": out[EMBEDDING]})
        assert bits({"": out[EMBEDDING]}) == bits(
            {"": by_token(own, words(90), open_delta(delta).read(EMBEDDING), words(90), 1.0)}
        )


@pytest.mark.parametrize("names", [("model.tok_embeddings.weight", "output.weight"), ("transformer.wte.weight", HEAD)])
def test_embedding_and_head_have_other_names_in_other_families(tmp_path: Path, names: tuple[str, str]) -> None:
    base = {name: values(number, 90) for number, name in enumerate(names)}
    delta = delta_of(tmp_path, base, words(90))
    ours = ["<|new|>", *words(90)]
    own = {n: near(np.roll(np.resize(a, (91, WIDTH)), 1, axis=0)) for n, a in base.items()}
    found = dict(grafted_tensors(save(tmp_path / "instruct", own, ours), [(delta, 1.0)]))
    for name in names:
        expected = by_token(own[name], ours, open_delta(delta).read(name), words(90), 1.0)
        assert bits({"": found[name]}) == bits({"": expected})


@pytest.mark.parametrize("merge", [Merge("ties", 0.3), Merge("dare", 0.3, 4)], ids=lambda merge: merge.rule)
def test_a_merge_rule_applies_before_rows_are_matched(tmp_path: Path, merge: Merge) -> None:
    """A token's row gets the same delta on an Instruct with other ids."""
    base = {EMBEDDING: values(1, 90), HEAD: values(2, 90)}
    first = delta_of(tmp_path / "first", base, words(90))
    second = delta_of(tmp_path / "second", {n: near(a, 80) for n, a in base.items()}, words(90))
    own = {n: near(a) for n, a in base.items()}
    at = [int(token.removeprefix("token")) for token in SHUFFLED]
    straight = save(tmp_path / "straight", own, words(90))
    shuffled = save(tmp_path / "shuffled", {n: a[at] for n, a in own.items()}, SHUFFLED)
    deltas = [(first, 0.6), (second, 0.4)]
    expected, found = (dict(grafted_tensors(model, deltas, Options(merge=merge))) for model in (straight, shuffled))
    for name in own:
        assert bits({"": found[name]}) == bits({"": expected[name][at]})
        assert bits({"": found[name]}) != bits({"": own[name][at]})


def test_rows_of_factors_are_matched_by_token_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    base = save(tmp_path / "base", {EMBEDDING: values(1, 90), HEAD: values(2, 90)}, words(90))
    factors = {
        "base_model.model.lm_head.lora_A.weight": rng.standard_normal((4, WIDTH)).astype(F32) * F32.type(0.01),
        "base_model.model.lm_head.lora_B.weight": rng.standard_normal((90, 4)).astype(F32) * F32.type(0.1),
    }
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    header = build_header({n: ("F32", a.shape) for n, a in factors.items()})
    write_safetensors(tmp_path / "adapter" / "adapter_model.safetensors", header, lambda n: iter([factors[n].ravel()]))
    extract(base, tmp_path / "adapter", tmp_path / "delta")
    ours = ["<|new|>", *words(90)]
    own = {n: near(np.roll(np.resize(values(k, 90), (91, WIDTH)), 1, axis=0)) for k, n in ((1, EMBEDDING), (2, HEAD))}
    instruct = save(tmp_path / "instruct", own, ours)
    found = dict(grafted_tensors(instruct, [(tmp_path / "delta", 0.7)]))
    expected = by_token(own[HEAD], ours, open_delta(tmp_path / "delta").read(HEAD), words(90), 0.7)
    assert bits({"": found[HEAD]}) == bits({"": expected})
    assert bits({"": found[EMBEDDING]}) == bits({"": own[EMBEDDING]})


def test_memory_does_not_grow_with_the_vocabulary(tmp_path: Path) -> None:
    """Rows are matched by token and trimmed in parts; the whole tensor is never in memory."""
    peaks = {}
    for rows in (200, 1600):
        folder = tmp_path / str(rows)
        base = {EMBEDDING: values(1, rows)}
        first, second = (delta_of(folder / n, base, words(rows), tied=True) for n in ("first", "second"))
        own = {EMBEDDING: np.roll(near(np.resize(base[EMBEDDING], (rows + 1, WIDTH))), 1, axis=0)}
        (folder / "second" / "delta" / "delta.json").write_bytes(_renamed(folder / "second" / "delta" / "delta.json"))
        instruct = save(folder / "instruct", own, ["<|new|>", *words(rows)], tied=True)
        tracemalloc.start()
        try:
            graft(instruct, [(first, 0.5), (second, 0.5)], folder / "out", Options(merge=Merge("ties", 0.2)))
            peaks[rows] = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peaks[1600] < 16_000_000, f"{peaks} bytes; the tensor is 32 MB in float32"
    assert peaks[1600] < 1.3 * peaks[200] + 1_000_000, f"{peaks} bytes by rows"


def _renamed(certificate: Path) -> bytes:
    """A second delta: the same weights under another certificate."""
    return canonical_json(json.loads(certificate.read_bytes()) | {"created_by": "another"})
