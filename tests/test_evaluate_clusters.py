"""Copies are one item; each item carries the digest of what it is about, and the slice it belongs to."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shadowft_core.errors import EvaluationError
from tests.fixtures.evaluation import World, prepared, score_instruct, write_task


def options(folder: Path, docs: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    write_task(folder, "odd", [])
    (folder / "odd.jsonl").write_text("".join(json.dumps({"a": "a", **doc}) + "\n" for doc in docs))
    config = yaml.safe_load((folder / "odd.yaml").read_text()) | changes
    (folder / "odd.yaml").write_text(yaml.safe_dump(config))
    return {"tasks": str(folder), "domain": ("odd",), "guards": ()}


def groups(items: list[dict[str, Any]]) -> list[int]:
    """How many items share what they are about; a cluster is named where more than one does."""
    names = [item["about"] for item in items]
    assert all(name.startswith("sha256:") for name in names)
    assert [item["cluster"] for item in items] == [name if names.count(name) > 1 else "" for name in names]
    return sorted(names.count(name) for name in set(names))


def asked(*words: str, **more: Any) -> list[dict[str, Any]]:
    return [{"q": f"say {word}", **more} for word in words]


@pytest.mark.parametrize("field", ["passage", "context", "article", "story", "document", "paragraph"])
def test_a_passage_is_a_cluster(world: World, tmp_path: Path, field: str) -> None:
    docs = [
        *asked("a", "b", "c", **{field: "Once."}),
        *asked("d", "e", **{field: "Twice."}),
        *asked("f", **{field: " "}),
    ]
    _, items = score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", docs))
    assert groups(items) == [1, 2, 3]


def test_what_all_items_have_tells_nothing_apart(world: World, tmp_path: Path) -> None:
    docs = asked("a", "b", "c", context="Answer briefly.")
    _, items = score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", docs))
    assert groups(items) == [1, 1, 1]


def test_one_question_with_several_targets_is_one_cluster(world: World, tmp_path: Path) -> None:
    docs = [{"q": "say a", "a": "a"}, {"q": "Say  a", "a": "b"}, {"q": "say b", "a": "b"}]
    _, items = score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", docs))
    assert len(items) == 3
    assert groups(items) == [1, 2]


def test_the_question_of_a_sentence_with_a_gap_is_all_its_versions(world: World, tmp_path: Path) -> None:
    """As in winogrande: `doc_to_text` is the number of the right version, the same for half of the items."""
    docs = [{"one": f"say {a}", "two": f"say {b}", "gold": gold} for a, b, gold in ("ab0", "cd0", "cd1", "ef0")]
    made = options(
        tmp_path / "tasks",
        [doc | {"gold": int(doc["gold"])} for doc in docs],
        output_type="multiple_choice",
        doc_to_text="gold",
        doc_to_target="{{'a'}}",
        doc_to_choice="{{[one, two]}}",
        generation_kwargs=None,
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )
    _, items = score_instruct(world, tmp_path / "out", **made)
    assert groups(items) == [1, 1, 2]
    file = tmp_path / "tasks" / "odd.yaml"
    file.write_text(file.read_text().replace("one, two", "one, two ~ one"))
    _, others = score_instruct(world, tmp_path / "other", **made)
    assert {item["item"] for item in items}.isdisjoint(item["item"] for item in others)  # asked something else


@pytest.mark.parametrize(("fields", "sizes"), [("book", [2, 2]), (["book", "page"], [1, 1, 2])])
def test_the_task_file_names_the_cluster(world: World, tmp_path: Path, fields: Any, sizes: list[int]) -> None:
    places = [(1, 1), (1, 1), (2, 1), (2, 2)]
    docs = [{"q": f"say {w}", "book": b, "page": p, "passage": w} for w, (b, p) in zip("abcd", places, strict=True)]
    made = options(tmp_path / "tasks", docs, metadata={"cluster": fields})
    _, items = score_instruct(world, tmp_path / "out", **made)
    assert groups(items) == sizes


@pytest.mark.parametrize("key", ["cluster", "slice"])
def test_a_field_that_documents_lack_is_refused(world: World, tmp_path: Path, loads: list[Path], key: str) -> None:
    made = options(tmp_path / "tasks", asked("a"), metadata={key: "book"})
    with pytest.raises(EvaluationError, match=rf"task odd: metadata\.{key} names the field book, .* has a, q; correct"):
        score_instruct(world, tmp_path / "out", **made)
    assert loads == []


def test_slices_have_means_and_counts(world: World, tmp_path: Path) -> None:
    docs = [{"q": f"say {w}", "a": a, "level": n} for w, a, n in [("a", "a", 1), ("b", "x", 1), ("c", "c", 2)]]
    scores, items = score_instruct(
        world, tmp_path / "out", **options(tmp_path / "t", docs, metadata={"slice": "level"})
    )
    found = scores["tasks"]["odd"]["slices"]
    assert {value: (part["n"], part["mean"], part["cut"]) for value, part in found.items()} == {
        "1": (2, 0.5, 0),
        "2": (1, 1.0, 0),
    }
    assert sorted(item["slice"] for item in items) == ["1", "1", "2"]


def test_copies_are_asked_once(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    docs = [*asked("a", "b"), *asked("a", "a"), {"q": "say a", "a": "b"}]
    scores, items = score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", docs))
    task = scores["tasks"]["odd"]
    assert sorted(item["copies"] for item in items) == [1, 1, 3]
    assert (task["n"], task["counts"]["copies"], task["mean"]) == (3, 2, 1 / 3)
    assert "instruct odd: of 3 items 2 copies" in capfd.readouterr().err


def test_heldout_rows_of_one_first_turn_are_a_cluster(world: World, tmp_path: Path) -> None:
    from dataclasses import replace

    held = [prepared("say a", "a b"), prepared(" Say a", "a c"), prepared("say b", "b c"), prepared("say b", "b c")]
    held = [row | {"source": f"rows.jsonl:{number}"} for number, row in enumerate(held, 1)]
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.Table.from_pylist(held), data / "test.parquet")
    world = replace(world, data=data)
    _, items = score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())
    assert groups(items) == [1, 2]
    assert sorted(item["copies"] for item in items) == [1, 1, 2]  # whatever row of the file it is


def test_each_item_keeps_its_own_cluster_and_slice(world: World, tmp_path: Path) -> None:
    """Also behind a copy and a row that is left out, which shift the numbers of the documents."""
    places = {"a": ("Once.", 1), "b": ("Once.", 1), "c": ("Twice.", 2), "d": ("Thrice.", 3)}
    docs = [{"q": f"say {w}", "passage": p, "level": n} for w, (p, n) in places.items()]
    docs[1:1] = [docs[0], {"q": "say " + "a " * 40, "passage": "Long.", "level": 4}]
    _, items = score_instruct(world, tmp_path / "out", **options(tmp_path / "tasks", docs, metadata={"slice": "level"}))
    found = {item["prompt"].split()[2]: item for item in items}
    assert {word: item["slice"] for word, item in found.items()} == {"a": "1", "b": "1", "c": "2", "d": "3"}
    of = {word: item["about"] for word, item in found.items()}
    assert of["a"] == of["b"]
    assert len(set(of.values())) == 3
    assert {word: item["copies"] for word, item in found.items()} == {"a": 2, "b": 1, "c": 1, "d": 1}


def test_items_of_two_tasks_about_the_same_are_one_cluster(world: World, tmp_path: Path) -> None:
    made = options(tmp_path / "tasks", asked("a", "b"))
    write_task(tmp_path / "tasks", "even", [])
    (tmp_path / "tasks" / "even.jsonl").write_text('{"q": "say b", "a": "c"}\n{"q": "say c", "a": "c"}\n')
    _, items = score_instruct(world, tmp_path / "out", **made | {"guards": ("even",)})
    shared = {(item["task"], item["prompt"].split()[2]) for item in items if item["cluster"]}
    assert shared == {("odd", "b"), ("even", "b")}
