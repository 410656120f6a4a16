"""The matcher: rows by token against its definition, and experts in either layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.errors import CheckpointError, ShapeMismatchError, TokenMismatchError
from shadowft_core.weights import EXPERT_NAMES, NO_TOKEN, match_rows, rows_by_token, runs_of
from shadowft_core.weights.families.experts import View, all_views
from shadowft_core.weights.match import expert_runs, layout_of_experts, split_experts
from shadowft_core.weights.vocabulary import token_marks

FUSED = {"l.mlp.experts.gate_up_proj": (2, 6, 4), "l.mlp.experts.down_proj": (2, 4, 3), "l.mlp.gate.weight": (2, 4)}
SINGLE = {
    "l.block_sparse_moe.gate.weight": (2, 4),
    **{f"l.block_sparse_moe.experts.{n}.{w}.weight": (3, 4) for n in range(2) for w in ("w1", "w3")},
    **{f"l.block_sparse_moe.experts.{n}.w2.weight": (4, 3) for n in range(2)},
}


def marks(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.uint64)


def test_a_row_matches_the_row_of_its_token_or_none() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ours, theirs = (rng.permutation(rng.choice(30, rng.integers(1, 20), replace=False)) for _ in range(2))
        place = {token: number for number, token in enumerate(theirs) if token != NO_TOKEN}
        expected = [
            number
            if number < len(theirs) and token == theirs[number]
            else place.get(token, -1)
            if token != NO_TOKEN
            else -1
            for number, token in enumerate(ours)
        ]
        found = rows_by_token(marks(*ours), marks(*theirs))
        assert found.tolist() == expected
        covered = [(here + n, there + n) for here, there, count in runs_of(found).tolist() for n in range(count)]
        assert covered == [(here, there) for here, there in enumerate(expected) if there >= 0]


def test_padding_is_matched_by_number_for_pair_and_never_for_graft() -> None:
    ours, theirs = marks(7, NO_TOKEN, 8), marks(7, NO_TOKEN, 9, 8)
    assert rows_by_token(ours, theirs).tolist() == [0, 1, 3]
    assert match_rows(ours, theirs, "here").tolist() == [0, -1, 3]


def test_rows_without_a_certain_match_are_refused() -> None:
    with pytest.raises(TokenMismatchError, match=r"here: ids \[1, 2\] of the Base are the same token"):
        match_rows(marks(7), marks(5, 7, 7), "here")
    with pytest.raises(TokenMismatchError, match="no token in common"):
        match_rows(marks(7), marks(5), "here")


def test_experts_have_the_same_slots_in_either_layout() -> None:
    fused, single = all_views(FUSED), all_views(SINGLE)
    assert fused.keys() == single.keys()
    assert {slot: view.shape for slot, view in fused.items()} == {slot: view.shape for slot, view in single.items()}
    one = {slot: view for slot, view in single.items() if slot == ("l.mlp", "1", "up")}
    assert {name: runs.tolist() for name, runs in expert_runs(one, fused).items()} == {
        "l.mlp.experts.gate_up_proj": [[9, 0, 3]]
    }


def test_both_layouts_are_split_into_the_same_names() -> None:
    sides = [{name: View(name, 0, shape) for name, shape in side.items()} for side in (FUSED, SINGLE)]
    assert [layout_of_experts(side) for side in sides] == ["fused", "one by one"]
    fused, single = (split_experts(side, EXPERT_NAMES["mixtral"]) for side in sides)
    assert {name: view.shape for name, view in fused.items()} == {name: view.shape for name, view in single.items()}
    assert fused["l.mlp.experts.1.w3.weight"] == View("l.mlp.experts.gate_up_proj", 9, (3, 4))
    odd = {"l.mlp.experts.gate_up_proj": View("l.mlp.experts.gate_up_proj", 0, (2, 5, 4))}
    with pytest.raises(ShapeMismatchError, match="expected fused experts"):
        split_experts(odd, EXPERT_NAMES["mixtral"])


@pytest.mark.parametrize("number", [-1, 1 << 50, "1", 1.5, True, None])
@pytest.mark.parametrize("part", ["vocab", "added_tokens"])
def test_an_id_that_no_row_can_have_is_refused(tmp_path: Path, number: Any, part: str) -> None:
    """A negative one would name the row of another token, and a huge one would ask for petabytes."""
    tokenizer: dict[str, Any] = {"model": {"vocab": {"a": 0}}, "added_tokens": []}
    if part == "vocab":
        tokenizer["model"]["vocab"]["b"] = number
    else:
        tokenizer["added_tokens"] = [{"id": number, "content": "b"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: token 'b' has id .*; expected text and an integer"):
        token_marks(tmp_path)


def test_a_token_that_is_no_text_is_refused(tmp_path: Path) -> None:
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": None}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match="token None has id 1; expected text"):
        token_marks(tmp_path)
