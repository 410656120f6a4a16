"""The smallest input beyond each limit that no test of its reader tries, and the largest within it."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import DataError, EvaluationError, PairError, StoreCorruptError, StoreError
from shadowft_core.files.rows import read_rows
from shadowft_core.files.templatecosts import Budget, TemplateLimit
from shadowft_core.pair import check_pair
from shadowft_core.params import Extract, Train
from shadowft_core.report.files import samples
from shadowft_core.selection import read_candidate, read_sweep
from shadowft_core.store.backends.folder import FolderBackend
from shadowft_core.store.backends.s3 import S3Backend
from shadowft_core.verdict.looks import read_run
from shadowft_core.verdict.scorefiles import read_considered, read_head, read_lines, read_seeds
from shadowft_core.verdict.verdictfile import read_verdict
from tests.fixtures.models import Pair

RECORDS: list[Callable[[Path], Any]] = [
    *(read_candidate, read_sweep, read_run, read_considered, read_seeds, read_verdict),
    lambda path: read_head(path.parent),
]


@pytest.mark.parametrize("read", RECORDS)
def test_a_record_of_a_run_has_16_mib(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    with (tmp_path / "scores.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(EvaluationError, match=r"scores\.json: 16777217 bytes, the limit is 16777216"):
        read(tmp_path / "scores.json")


def test_an_item_has_64_mib_on_its_line(tmp_path: Path) -> None:
    with (tmp_path / "items.jsonl").open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(EvaluationError, match=r"items\.jsonl:1: a line of more than 67108864 bytes"):
        list(read_lines(tmp_path / "items.jsonl"))


def test_an_arm_has_so_many_items_and_a_page_so_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowft_core.verdict.scorefiles.ITEMS", 2)
    monkeypatch.setattr("shadowft_core.report.files.ITEMS", 2)
    (tmp_path / "samples.jsonl").write_text('{"pieces":[]}\n' * 2)
    (tmp_path / "items.jsonl").write_text('{"task":"t","item":"a","score":1}\n' * 2)
    assert [number for number, _ in read_lines(tmp_path / "items.jsonl")] == [1, 2]
    assert len(samples(tmp_path.parent, [tmp_path.name])) == 2
    (tmp_path / "samples.jsonl").write_text('{"pieces":[]}\n' * 3)
    (tmp_path / "items.jsonl").write_text('{"task":"t","item":"a","score":1}\n' * 3)
    with pytest.raises(EvaluationError, match=r"items\.jsonl: more than 2 items"):
        list(read_lines(tmp_path / "items.jsonl"))
    with pytest.raises(EvaluationError, match=r"samples\.jsonl: more than 2 lines"):
        samples(tmp_path.parent, [tmp_path.name])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"score": 1.1e50}, r"score: .*less than or equal to 10{50},"),
        ({"score": -1.1e50}, r"score: .*greater than or equal to -10{50},"),
        ({"tokens": 2**53 + 1}, "tokens: .*less than or equal to 9007199254740992"),
        ({"tokens": -1}, "tokens: .*greater than or equal to 0"),
        ({"task": ""}, "task: .*at least 1 character"),
        ({"slice": "x" * 301}, "slice: .*at most 300"),
        ({"others": {str(n): 1.0 for n in range(1001)}}, "others: .*at most 1000 items"),
    ],
)
def test_a_line_of_scores_has_numbers_and_names_within_limits(tmp_path: Path, fields: Any, said: str) -> None:
    line = {"task": "t", "item": "a", "score": 1e50, "tokens": 2**53, "slice": "x" * 300}
    (tmp_path / "items.jsonl").write_text(json.dumps(line))
    assert len(list(read_lines(tmp_path / "items.jsonl"))) == 1
    (tmp_path / "items.jsonl").write_text(json.dumps(line | fields))
    with pytest.raises(EvaluationError, match=said):
        list(read_lines(tmp_path / "items.jsonl"))


TASK = {"role": "domain", "metric": "acc", "n": 1, "mean": 0.5}
HEAD = {"format": 1, "arm": "a", "scale": None, "model_digest": "d", "template_digest": None}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tasks": {str(n): TASK for n in range(10_001)}}, "tasks: .*at most 10000 items"),
        ({"tasks": {}}, "tasks: .*at least 1 item"),
        ({"tasks": {"t": TASK | {"n": 0}}}, "n: .*greater than or equal to 1"),
        ({"kl": {}}, "kl: expected either `not_measured` or a mean"),
        ({"kl": {"mean": 0.1, "not_measured": "x"}}, "kl: expected either `not_measured` or a mean"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
    ],
)
def test_scores_have_tasks_within_limits(tmp_path: Path, fields: Any, said: str) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(HEAD | {"tasks": {str(n): TASK for n in range(10_000)}}))
    assert read_head(tmp_path).domain_mean == 0.5
    (tmp_path / "scores.json").write_text(json.dumps(HEAD | {"tasks": {"t": TASK}} | fields))
    with pytest.raises(EvaluationError, match=said):
        read_head(tmp_path)


def test_further_seeds_are_counted_from_0_and_at_most_1000(tmp_path: Path) -> None:
    for seeds, said in (([-1], "greater than or equal to 0"), (range(1001), "at most 1000 items")):
        (tmp_path / "s.json").write_text(json.dumps({"format": 1, "first": 1, "further": [{"seed": n} for n in seeds]}))
        with pytest.raises(EvaluationError, match=rf"further.*{said}"):
            read_seeds(tmp_path / "s.json")


def test_an_object_of_a_store_has_256_mib(tmp_path: Path) -> None:
    for size in ((256 << 20) + 1, 10):
        with (tmp_path / "large").open("wb") as file:
            file.truncate(size)
        if size > 10:
            with pytest.raises(StoreCorruptError, match="large has 268435457 bytes, the limit is 268435456"):
                FolderBackend(tmp_path).head("large")
    assert FolderBackend(tmp_path).head("large") is not None


def test_a_listing_of_a_folder_has_plain_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / ".hidden").symlink_to("a")
    assert [entry.key for entry in FolderBackend(tmp_path).entries("")] == ["a"]
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StoreCorruptError, match="b is no plain file or folder"):
        FolderBackend(tmp_path).entries("")


class Page(list[Any]):
    """Of a listing that never ends."""

    def __len__(self) -> int:
        return 999_999


def test_a_listing_of_a_store_has_ten_million_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    backend, numbers = S3Backend("bucket", "", None, "r", None, None, None), count()
    page = {"Contents": Page(), "IsTruncated": True}
    monkeypatch.setattr(backend, "_call", lambda *_: page | {"NextContinuationToken": str(next(numbers))})
    with pytest.raises(StoreError, match=r"does not end \(11000000 objects\)"):
        list(backend.entries(""))


def test_a_data_file_has_so_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowft_core.files.rows.ROWS", 2)
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 2)
    assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 2
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' * 3)
    with pytest.raises(DataError, match="more than 2 rows in one file"):
        list(read_rows(tmp_path / "rows.jsonl"))


def test_a_template_has_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget()
    monkeypatch.setattr("time.thread_time", iter([1.0, 6.0, 6.1]).__next__)
    budget.check()
    budget.check()
    with pytest.raises(TemplateLimit, match="more than 5 seconds"):
        budget.check()


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        *(("max_steps", 10**9), ("max_length", 10**9), ("batch_size", 1 << 24), ("accumulation", 1 << 24)),
        *(("threads", 1024), ("seeds", 2**32 - 1)),
    ],
)
def test_the_largest_number_of_a_parameter_is_taken(name: str, largest: int) -> None:
    def value(number: int) -> Any:
        return {name: [number] if name == "seeds" else number}

    assert Train.model_validate(value(largest))
    with pytest.raises(ValueError, match=f"less than or equal to {largest}"):
        Train.model_validate(value(largest + 1))


def test_the_longest_list_of_a_parameter_is_taken() -> None:
    assert Extract.model_validate({"ignore": ["a"] * 10_000})
    with pytest.raises(ValueError, match="at most 10000 items"):
        Extract.model_validate({"ignore": ["a"] * 10_001})


def test_a_pair_with_long_values_has_short_reasons(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama_pair.instruct, tmp_path / "instruct")
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\xff")  # counts as a template all the same
    config = json.loads((folder / "config.json").read_bytes())
    own = {"auto_map": {str(number): f"own.Own{number}" for number in range(20)}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (reason,) = (one for one in check_pair(tiny_llama_pair.base, folder)["reasons"] if "includes code" in one)
    assert (reason.count("auto_map"), "own.Own7" in reason) == (8, True)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "x" * 5000}))
    with pytest.raises(PairError, match=r"hidden_act is .*, 'x{79} in the Instruct"):
        check_pair(tiny_llama_pair.base, folder)
    with pytest.raises(PairError, match=r"hidden_act is 'x{79} in the Base"):
        check_pair(folder, tiny_llama_pair.instruct)
