"""One-pass grafts refuse with the error classes of `extract` and `graft`, and write nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.delta import extract
from shadowft_core.delta import open_difference as difference
from shadowft_core.errors import (
    AdapterError,
    CheckpointError,
    DeltaError,
    GraftError,
    NotFiniteError,
    OntoBaseError,
    QuantisedError,
    ShadowError,
    ShapeMismatchError,
    TensorMissingError,
    UnrelatedError,
    WrongBaseError,
    ZeroDeltaError,
)
from shadowft_core.files import write_json_atomically
from shadowft_core.grafting import Merge, Options, graft
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import write_model
from tests.test_graft import Q, Tensors, bits, refused, tensors_of
from tests.test_graft_one_pass import DOWN, files, written
from tests.test_graft_tokens import EMBEDDING, HEAD, near, save, values, words


def test_a_graft_that_a_recipe_cannot_repeat_is_refused(tmp_path: Path) -> None:
    instruct, base, tuned = written(tmp_path)
    pair = difference(base, tuned)
    refused(GraftError, "dare needs a stored delta's digest", instruct, [(pair, 1.0)], merge=Merge("dare", 0.5, 1))
    extract(base, tuned, tmp_path / "stored")
    both = [(tmp_path / "stored", 1.0), (pair, 1.0)]
    refused(GraftError, "dare needs a stored delta's digest", instruct, both, merge=Merge("dare", 0.5, 1))
    refused(GraftError, "the same delta as", instruct, [(pair, 0.5), (difference(base, tuned), 0.5)])
    refused(GraftError, "tuned: scale nan; expected a finite number", instruct, [(pair, float("nan"))])
    refused(OntoBaseError, "the Instruct is the delta's own Base", base, [(pair, 1.0)])
    graft(base, [(pair, 1.0)], tmp_path / "onto", Options(waivers=["onto-base"]))
    assert bits(tensors_of(tmp_path / "onto")) == bits(tensors_of(tuned)), "the tuned model again"
    for folder in (instruct, base, tuned, tmp_path):
        before = files(folder)
        with pytest.raises(GraftError, match=r"contains the input .* and would be replaced; choose another --out"):
            graft(instruct, [(pair, 1.0)], folder)
        assert files(folder) == before


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, base, tuned = written(tmp_path)
    tensors, moved = tensors_of(base), tensors_of(tuned)
    config = {"quantization_config": {"bits": 4}}
    cases: list[tuple[type[ShadowError], str, Tensors, dict[str, Any]]] = [
        (ZeroDeltaError, "every tensor equals", tensors, {}),
        (ShapeMismatchError, f"tensor {Q}: .*300, 700.*300, 699", moved | {Q: moved[Q][:, :-1]}, {}),
        (TensorMissingError, f"only .*base has {Q} \\(1 in all\\)", {n: a for n, a in moved.items() if n != Q}, {}),
        (TensorMissingError, "only .* has more.weight", moved | {"more.weight": moved[Q]}, {}),
        (QuantisedError, "quantization_config", moved, config),
        (QuantisedError, f"tensor {Q} is BF16 .*, I8", moved | {Q: np.ones((300, 700), np.int8)}, {}),
    ]
    for number, (kind, message, after, options) in enumerate(cases):
        folder = write_model(tmp_path / f"other{number}", after, **options)
        with pytest.raises(kind, match=message) as caught:
            difference(base, folder)
        assert "\n" not in str(caught.value)
        with pytest.raises(kind):
            extract(base, folder, tmp_path / "delta")


def test_a_tuned_folder_is_read_as_by_extract(tmp_path: Path) -> None:
    instruct, base, tuned = written(tmp_path)
    (tmp_path / "left").mkdir()
    left = tuned.rename(tmp_path / "left" / "model").parent
    write_json_atomically(left / "train.json", {"model_digest": open_checkpoint(base).digest()})
    made = graft(instruct, [(difference(base, left), 1.0)], tmp_path / "out")
    assert made["deltas"][0]["tuned"] == open_checkpoint(left / "model").digest()
    with pytest.raises(WrongBaseError, match=r"train\.json: was tuned from sha256:.*pass the model it was tuned from"):
        difference(instruct, left)
    (left / "model").rename(tmp_path / "model")
    (left / "adapter").mkdir()
    write_json_atomically(left / "adapter" / "adapter_config.json", {})
    with pytest.raises(AdapterError, match="is an adapter; run `shadowft extract` and graft its folder with --delta"):
        difference(base, left)
    (left / "model").mkdir()
    with pytest.raises(DeltaError, match="contains both"):
        difference(base, left)


def test_wrong_weights_are_found_during_the_pass(tmp_path: Path) -> None:
    """They are read when the output is partly written; nothing of it is left."""
    instruct, base, tuned = written(tmp_path)
    moved = tensors_of(tuned)
    for value, whose in ((np.nan, "nan"), (np.inf, "inf")):
        damaged = moved | {DOWN: moved[DOWN].copy()}
        damaged[DOWN][-1, -1] = value
        pair = difference(base, write_model(tmp_path / whose, damaged, 2))
        refused(NotFiniteError, f"the delta's tensor {DOWN} has NaN or infinity", instruct, [(pair, 1.0)])
    stranger = write_model(tmp_path / "stranger", moved | {DOWN: moved[DOWN][::-1].copy()}, 2)
    message = rf"tensor {DOWN}: \|difference\| is 1\.4. of \|weights\|"
    refused(UnrelatedError, message, instruct, [(difference(base, stranger), 1.0)])
    options = Options(waivers=["unrelated"])
    waived = graft(instruct, [(difference(base, stranger, True), 1.0)], tmp_path / "out", options)
    extract(base, stranger, tmp_path / "delta", unrelated=True)
    assert waived["digest"] == graft(instruct, [(tmp_path / "delta", 1.0)], tmp_path / "two")["digest"]
    assert waived["waivers"] == ["unrelated"]


def test_an_unrelated_vocabulary_is_found_where_rows_are_read_out_of_order(tmp_path: Path) -> None:
    base = {EMBEDDING: values(1, 90), HEAD: values(2, 90)}
    other = {EMBEDDING: values(11, 90), HEAD: values(12, 90)}
    own = {name: near(weights) for name, weights in base.items()}
    instruct = save(tmp_path / "instruct", own, words(90)[::-1])
    folders = [save(tmp_path / n, t, words(90)) for n, t in (("base", base), ("other", other))]
    refused(
        UnrelatedError,
        r"tensor (lm_head|model\.embed_tokens)\.weight: .* is 1\.4",
        instruct,
        [(difference(*folders), 1.0)],
    )


def test_a_damaged_pair_of_checkpoints_is_named(tmp_path: Path) -> None:
    instruct, base, tuned = written(tmp_path, shards=1)
    pair = difference(base, tuned)
    shard = next(tuned.glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    refused(CheckpointError, str(tuned), instruct, [(pair, 1.0)])
    write_json_atomically(tuned / "config.json", {"model_type": "llama"})
    with pytest.raises(CheckpointError):
        difference(base, tuned)
