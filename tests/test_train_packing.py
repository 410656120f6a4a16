"""Packs: the same losses as one sequence at a time, nothing cut, the same order each time."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shadowft_core.errors import TrainError
from shadowft_core.rendering import IGNORED
from shadowft_core.train.packing import PackingCollator, fill, packed, require_packable
from tests.fixtures.families import TEXT
from tests.fixtures.training import SETTINGS, run, tree

PACKED = SETTINGS.model_copy(update={"packing": True, "batch_size": 2, "epochs": 2})


def sequences(*lengths: int) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(6, 60, (length,), generator=generator).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": [[IGNORED, IGNORED, *row[2:]] for row in ids]})


def family(name: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **TEXT | more)).eval()


def test_nothing_is_cut_or_split_and_the_order_is_the_same() -> None:
    rows = sequences(5, 12, 3, 9, 12, 4, 7, 2, 12, 2)
    packs = packed(rows, 12)
    found = []
    for ids, labels, lengths in zip(packs["input_ids"], packs["labels"], packs["seq_lengths"], strict=True):
        assert len(ids) == len(labels) == sum(lengths) <= 12
        at = 0
        for length in lengths:
            found.append((ids[at : at + length], labels[at : at + length]))
            at += length
    assert sorted(found) == sorted(zip(rows["input_ids"], rows["labels"], strict=True))
    assert packs.to_dict() == packed(sequences(5, 12, 3, 9, 12, 4, 7, 2, 12, 2), 12).to_dict()
    assert fill(packs, 12) == {"packs": 6, "sequences": 10, "tokens": 68, "fill": round(68 / 72, 4)}
    with pytest.raises(TrainError, match="packing lost tokens"):
        packed(sequences(5, 13), 12)


def test_many_rows_are_packed_together() -> None:
    """Not a thousand at a time, as `datasets` would by default."""
    packs = packed(sequences(*[7] * 1001, *[5] * 1001), 12)
    assert len(packs) == 1001
    assert all(sorted(lengths) == [5, 7] for lengths in packs["seq_lengths"])


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_each_sequence_has_the_loss_that_it_has_alone(name: str, flat: bool) -> None:
    more = {"sliding_window": 4} if name == "gemma3_text" else {}
    model = family(name, **more)
    rows = sequences(9, 3, 12, 5, 7)
    packs = packed(rows, 24)
    batch = PackingCollator(0, flat)([packs[at] for at in range(len(packs))])
    assert batch["tokens"] == 36
    width = 36 if flat else max(map(sum, packs["seq_lengths"]))
    assert batch["input_ids"].shape == ((1, 36) if flat else (len(packs), width))
    starts = batch["position_ids"] == 0
    assert (batch["labels"][starts] == IGNORED).all()
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="none"
    )
    alone = []
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        out = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        alone.append(torch.nn.functional.cross_entropy(out, torch.tensor(labels[1:]), reduction="none"))
    expected = torch.cat(alone)
    assert torch.allclose(losses[losses > 0].sort().values, expected[expected > 0].sort().values, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("flat", [False, True])
def test_the_first_token_of_a_sequence_is_not_learned_from_the_one_before(flat: bool) -> None:
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8], "seq_lengths": [2, 2]}]
    batch = PackingCollator(0, flat)(rows)
    assert batch["labels"].tolist() == [[IGNORED, 6, IGNORED, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1]]


def test_the_check_of_packs_runs_without_dropout_and_takes_a_single_row() -> None:
    model = family("gpt2").train()
    require_packable(model, sequences(9), 0)
    assert model.training


def test_logits_that_are_not_finite_are_no_agreement() -> None:
    model = family("llama")
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(TrainError, match="differ by nan"):
        require_packable(model, sequences(5, 7), 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_family_that_reads_across_the_border_is_refused(attention: str) -> None:
    rows = sequences(20, 30)
    model = family("llama", attn_implementation=attention)
    require_packable(model, rows, 0)
    assert not model.training
    with pytest.raises(TrainError, match="in a mamba2 model, packed sequences are not apart"):
        require_packable(
            family("mamba2", head_dim=8, num_heads=8, n_groups=1, state_size=8, expand=2, chunk_size=8), rows, 0
        )


def test_training_on_packs_learns_and_says_so(place: Path, tmp_path: Path) -> None:
    facts = run(place, tmp_path / "one", PACKED)
    assert facts["last_loss"] < facts["first_loss"]
    found = facts["packing"]
    assert found["sequences"] == facts["rows"]["train"]["sequences"]
    assert found["tokens"] == facts["rows"]["train"]["tokens"]
    assert found["fill"] == round(found["tokens"] / (40 * found["packs"]), 4) >= 0.75
    assert facts["tokens"] == 2 * found["tokens"]
    assert facts["steps"] == 2 * -(-found["packs"] // 2)
    run(place, tmp_path / "two", PACKED)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_the_loss_of_a_step_is_that_of_the_same_rows_padded(place: Path, tmp_path: Path) -> None:
    """One step over all rows: the loss is a mean over tokens, so packs and padded rows agree."""
    one = PACKED.model_copy(update={"batch_size": 100, "max_steps": 1})
    found = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) | {"valid": facts["valid_loss"]}
        for name, facts in (
            ("packed", run(place, tmp_path / "packed", one)),
            ("padded", run(place, tmp_path / "padded", one.model_copy(update={"packing": False}))),
        )
    ]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-5)
    assert found[0]["tokens"] == found[1]["tokens"]
    assert found[0]["valid"] == pytest.approx(found[1]["valid"], rel=1e-5)


def test_a_pack_keeps_the_rows_of_its_sequences() -> None:
    import pyarrow as pa

    from shadowft_core.train.encode import ids_column
    from shadowft_core.train.sources import SOURCES, sources_column

    rows = [np.full(length, at, np.int32) for at, length in enumerate((5, 9, 3, 2, 8, 4))]
    columns = {"input_ids": ids_column(rows), "labels": ids_column(rows)}
    table = pa.table(columns | sources_column([[f"rows:{at}"] for at in range(len(rows))]))
    packs = packed(datasets.Dataset(table), 10)
    for ids, sources in zip(packs["input_ids"], packs[SOURCES], strict=True):
        assert [f"rows:{at}" for at in dict.fromkeys(ids)] == sources
    assert sum(map(len, packs[SOURCES])) == len(rows)
