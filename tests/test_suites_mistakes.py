"""Mistakes that people make in task files and with `shadowft suite`: each is one line that says what to correct."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError, InputError
from shadowft_core.suites import TaskFiles
from shadowft_core.suites.names import some
from shadowft_core.suites.sources import Source
from tests.fixtures.cli import Shadowft

ROOT = Path(__file__).parents[1]
GOOD: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl", "train": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "metric_list": [{"metric": "exact_match"}],
}


def build(folder: Path, **changes: Any) -> Any:
    """The task with these keys changed; a key that is None is left out."""
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"q": f"{n} + 1?", "a": str(n + 1)}) + "\n" for n in (1, 2)))
    config = {key: value for key, value in (GOOD | changes).items() if value is not None}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    return TaskFiles(folder).build("mine", folder, folder / "cache")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_fewshots": 2}, "the key num_fewshots is unknown; did you mean num_fewshot"),
        ({"judge": "x"}, "the key judge is unknown; correct or remove it"),
        ({"test_split": "trian"}, "test_split is 'trian', but data_files has test, train; correct one of them"),
        ({"fewshot_split": "dev", "num_fewshot": 1}, "fewshot_split is 'dev', but data_files has test, train"),
        ({"dataset_kwargs": {"data_files": "rows.jsonl"}}, "test_split is 'test', but data_files has train"),
        ({"doc_to_target": None}, "has no doc_to_target; add it"),
        ({"doc_to_text": None}, "has no doc_to_text; add it"),
        ({"doc_to_target": None, "metric_list": None, "scorer": "number"}, "has no doc_to_target; add it"),
        ({"metric_list": [{"metric": "exact_mach"}]}, r"exact_mach is none of the harness \(did you mean exact_match"),
    ],
    ids=["key", "own-key", "split", "examples", "one-file", "target", "text", "scorer", "metric"],
)
def test_a_mistake_in_a_task_file_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert len(build(tmp_path / "good").eval_docs) == 2
    with pytest.raises(EvaluationError, match=rf"^task mine \(.*mine.yaml\): .*{message}") as caught:
        build(tmp_path / "bad", **changes)
    assert len(str(caught.value)) <= 1000


def test_names_of_any_length_are_cut_and_counted() -> None:
    assert some(["b" * 400, "a" * 400], 150) == "a" * 120 + " and 1 more"
    assert some(["b", "a"], 150) == "a, b"


def test_a_file_is_not_the_folder_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"test.jsonl: a file; name the folder of the data with --from"):
        _ = Source(tmp_path / "test.jsonl").files


def test_an_output_of_the_other_kind_is_refused_before_anything_is_read(tmp_path: Path, shadowft: Shadowft) -> None:
    (tmp_path / "file").touch()
    fetch = shadowft("suite", "fetch", "gsm8k", "--out", str(tmp_path / "file"), "--json")
    fetch.refused_as_json(2, "UsageError", "--out", "is a file")
    compare = shadowft("compare", "a", "b", "--html", str(tmp_path), "--json")
    compare.refused_as_json(2, "UsageError", "--html", "is a directory")


@pytest.mark.parametrize("more", [(), ("--champion",)], ids=["arms", "champion"])
@pytest.mark.parametrize("out", ["mine", "."])
def test_scores_never_replace_what_they_are_made_from(
    out: str, more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadowft: Shadowft
) -> None:
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["tasks"] = "mine"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mine.yaml").write_text(yaml.safe_dump(GOOD))
    ended = shadowft("evaluate", "--instruct", "/a", "--data", "/b", "--out", out, *more)
    ended.refused(3, f"{out}: holds mine, which is read, and would be replaced; choose another --out")
    assert (tmp_path / "mine/mine.yaml").is_file()
