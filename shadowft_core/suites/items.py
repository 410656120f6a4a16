"""Where the test items of tasks are, so that data can be compared with them. Does not import the harness."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from shadowft_core.errors import EvaluationError
from shadowft_core.files import Fields, lines_of, read_record, reading, real_path
from shadowft_core.limits import COUNT, ITEM_BYTES
from shadowft_core.suites.configs import data_patterns, is_local, read_config
from shadowft_core.suites.taskfiles import BUILT_IN, TaskFiles

RECORD = "suite.json"  # in the folder of a fetched suite


class SuiteData(Fields):
    """A file of a fetched suite; `items`: it holds test items."""

    digest: str
    rows: int = Field(ge=0, le=COUNT)
    items: bool


class SuiteFile(Fields):
    """suite.json."""

    suite: str
    tasks: tuple[str, ...]
    files: dict[str, SuiteData]
    notes: tuple[str, ...] = ()
    revisions: dict[str, str] = Field(default_factory=dict)


def read_suite(record: Path) -> SuiteFile:
    """The record of a fetched suite. Raises EvaluationError if it is damaged."""
    return read_record(record, SuiteFile, "remove its folder, and fetch the suite again", error=EvaluationError)


@dataclass(frozen=True)
class ItemFiles:
    """Files of items by the name that reports give them, and the tasks whose items are in none of them."""

    files: dict[str, Path]
    not_compared: list[str]


def item_files(folder: Path, names: Iterable[str], suffixes: tuple[str, ...]) -> ItemFiles:
    """The data files with test items, of types `suffixes`, of all tasks in a folder and of these names of params.yaml.

    These are all data files below the folder, without the few-shot examples of fetched suites, and the files elsewhere
    that the named tasks read. A task whose items are on a hub, made by code, or in a file of another type, and a name
    that the folder does not have, is not compared. Raises EvaluationError as `TaskFiles` and `TaskFiles.resolve` do.
    """
    tasks, examples = TaskFiles(folder), few_shot_files(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    files = {
        path.relative_to(folder).as_posix(): path for path in found if path.name != RECORD and path not in examples
    }
    known = {name for name in names if name in tasks.tasks or name in tasks.groups}
    named = tasks.resolve(known)
    missing = sorted(set(names) - known)
    for task, path in tasks.tasks.items():
        if path.is_relative_to(BUILT_IN):
            continue  # rows that `prepare` holds out itself
        config = read_config(path) | dict(named[task].overrides if task in named else {})
        if not is_local(config):
            missing.append(task)
            continue
        if task not in named:
            continue
        for file in _of_test_split(config, path.resolve().parent):
            if not file.is_relative_to(folder.resolve()):
                if file.suffix.lower() in suffixes:
                    files[file.as_posix()] = file
                else:
                    missing.append(task)
    return ItemFiles(files, sorted(set(missing)))


@dataclass(frozen=True)
class Rows:
    """The rows of a task's test split, as far as its files tell. `likelihood`: scored by log-likelihood per byte."""

    count: int
    likelihood: bool


def rows_of(folder: Path, data: Path, names: Iterable[str], limit: int | None = None) -> dict[str, Rows] | None:
    """The number of rows of each task that these names of params.yaml stand for, at most `limit` each; None if that of
    one of them is not known without the harness.

    `data` is the folder made by `prepare`. Raises EvaluationError as `TaskFiles` and `TaskFiles.resolve` do.
    """
    tasks, wanted = TaskFiles(folder), list(names)
    if any(name not in tasks.tasks and name not in tasks.groups for name in wanted):
        return None
    found = {}
    for name, leaf in tasks.resolve(wanted).items():
        path = tasks.path(name)
        config = read_config(path) | dict(leaf.overrides)
        if not is_local(config) or "process_docs" in config:
            return None
        counts = [_rows(file) for file in _of_test_split(config, path.resolve().parent, data)]
        if not counts or None in counts:
            return None
        total = sum(filter(None, counts))
        likelihood = config.get("output_type") == "loglikelihood" and not config.get("metric_list")
        found[name] = Rows(total if limit is None else min(total, limit), likelihood)
    return found


def _rows(path: Path) -> int | None:
    """The rows of a data file; None for a type that would have to be parsed as the datasets library does."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        with reading(path, "replace the file", EvaluationError, OSError, pyarrow.ArrowException):
            return int(pyarrow.parquet.read_metadata(path).num_rows)
    if path.suffix == ".jsonl":
        return sum(not line.isspace() and line != b"" for _, line in lines_of(path, ITEM_BYTES, EvaluationError))
    return None


def few_shot_files(folder: Path) -> set[Path]:
    """The data files of fetched suites that hold examples for prompts and no test items."""
    return {
        record.parent / name
        for record in folder.rglob(RECORD)
        for name, about in read_suite(record).files.items()
        if not about.items
    }


def _of_test_split(config: dict[str, Any], folder: Path, data: Path | None = None) -> Iterable[Path]:
    """The files of the split that is scored; those below {data} are left out without `data`."""
    files = config["dataset_kwargs"]["data_files"]
    split = config.get("test_split") or config.get("validation_split")
    for pattern in data_patterns(files.get(split) if isinstance(files, dict) else files):
        if "{data}" in pattern and data is None:
            continue
        place = folder / (pattern if data is None else pattern.replace("{data}", str(data.resolve())))
        for one in [str(place)] if place.is_file() else glob.glob(str(place)):
            yield real_path(one)
