"""Fetches the task files and the data of suites into a folder that then needs no network."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from shadowft_core.errors import InputError
from shadowft_core.files import file_digest, new_folder, reading, write_atomically, write_json_atomically
from shadowft_core.suites.catalogue import UNKNOWN_LICENCE, Benchmark, Suite, Task
from shadowft_core.suites.items import RECORD, read_suite
from shadowft_core.suites.names import some
from shadowft_core.suites.shapes import Row
from shadowft_core.suites.sources import Source

Download = Callable[[str, str | None, Path], tuple[str, str | None]]
"""Downloads a data set (owner/name) at a commit, or the newest, into a folder; returns the commit and the licence."""
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
EXAMPLES = ("fewshot_split", "training_split", "validation_split")  # where examples come from, the first that is there
HEADER = "# Written by `shadowft suite fetch {}`.\n"


@dataclass
class Fetched:
    """What became of one benchmark: `state` is written, kept or left out."""

    name: str
    state: str
    tasks: int = 0
    items: int = 0
    notes: list[str] = field(default_factory=list)


def fetch_suite(suite: Suite, out: Path, source: Path | None, download: Download) -> list[Fetched]:
    """Write the benchmarks of a suite below `out`, each into a folder of its name, and a group file for the suite.

    A benchmark that is there and whole is kept. The data comes from the folder `source`, or from the hub. A folder of
    a benchmark holds task files, data/ and suite.json: source, revision, licence, size and SHA-256 of every file.

    Raises InputError if no benchmark could be fetched or a file cannot be read, and what `download` raises; what was
    fetched before stays.
    """
    given = Source(source) if source else None
    used: set[Path] = set()
    found = [
        _kept(out / benchmark.name) or _fetch(benchmark, out, given, used, download) for benchmark in suite.benchmarks
    ]
    there = [one.name for one in found if one.state != "left out"]
    if not there:
        raise InputError("; ".join(f"{one.name}: {'; '.join(one.notes)}" for one in found)[:900])
    if [suite.name] != [benchmark.name for benchmark in suite.benchmarks]:
        absent = [line.name for line in suite.lines if not line.benchmark or line.benchmark.name not in there]
        group = {"group": suite.name, "task": there, "metadata": {"left_out": absent}}
        with new_folder(out / suite.name) as folder:
            _write_yaml(folder / f"{suite.name}.yaml", suite.name, group)
    beside = {path.parent for path in used}
    if given and (others := [name for name in given.others(used) if (given.folder / name).parent in beside]):
        found[-1].notes.append(f"not used: {some(others, 300)}")
    return found


def _kept(folder: Path) -> Fetched | None:
    """What is in the folder of a benchmark, if it is whole."""
    if not (folder / RECORD).is_file():
        return None
    record = read_suite(folder / RECORD)
    for name, about in record.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != about.digest:
            return None
    notes = [f"already in {folder}; remove it to fetch it again", *record.notes]
    items = sum(about.rows for about in record.files.values() if about.items)
    return Fetched(record.suite, "kept", len(record.tasks), items, notes)


def _fetch(benchmark: Benchmark, out: Path, given: Source | None, used: set[Path], download: Download) -> Fetched:
    """Fetch one benchmark; adds the files of `given` that it read to `used`."""
    old = out / benchmark.name / RECORD
    pinned = read_suite(old).revisions if old.is_file() else {}
    with TemporaryDirectory(prefix="shadowft-") as scratch:
        data = _Data(Path(scratch), given, download, pinned)
        plan, notes = _plan(benchmark, data), []
        if plan is None and benchmark.without_examples is None:
            return Fetched(benchmark.name, "left out", notes=["the source has no few-shot examples"])
        if plan is None:
            before, benchmark = benchmark, benchmark.bare()
            plan = _plan(benchmark, data, bare=True) or []
            other = benchmark.harness != before.harness
            instead = (
                f"the harness's task {benchmark.harness} ({benchmark.shots}) is used instead" if other else "0 shots"
            )
            notes.append(f"the source has no few-shot examples: {instead}")
        there = [one for one in plan if one.scored]
        if not there:
            return Fetched(benchmark.name, "left out", notes=[data.nothing(benchmark)])
        if missing := [one.task.name for one in plan if not one.scored]:
            notes.append(f"{len(missing)} of {len(plan)} tasks have no data in the source: {some(missing, 300)}")
        record = _write(benchmark, out / benchmark.name, there, data, notes)
        used |= data.files
    items = sum(about["rows"] for about in record["files"].values() if about["items"])
    if benchmark.items and items != benchmark.items:
        notes.append(f"{items:,} of {benchmark.items:,} items")
    return Fetched(benchmark.name, "written", len(there), items, notes)


class _Data:
    """Rows by data set, configuration and split, each read once."""

    def __init__(self, scratch: Path, given: Source | None, download: Download, pinned: Mapping[str, str]) -> None:
        self._scratch, self._given, self._download, self._pinned = scratch, given, download, pinned
        self.files: set[Path] = set()
        """those that rows were read from"""
        self._brought: dict[str, Source] = {}
        self.revisions: dict[str, str] = {}
        self.licences: dict[str, str] = {}
        self._rows: dict[tuple[str, str | None, str], list[Row] | None] = {}

    def rows(self, config: Mapping[str, Any], split: str) -> list[Row] | None:
        """The rows of a split of a task's data set, of all configurations that it lists; None if there are none."""
        dataset, names = str(config["dataset_path"]), config.get("dataset_name")
        every = [self._read(dataset, name, split) for name in (names if isinstance(names, list) else [names])]
        return [row for part in every for row in part or ()] or None

    def _read(self, dataset: str, name: str | None, split: str) -> list[Row] | None:
        key = (dataset, name, split)
        if key not in self._rows:
            rows, files = self._source(dataset).rows(dataset, name, split) or (None, [])
            self._rows[key] = rows
            self.files |= set(files)
        return self._rows[key]

    def _source(self, dataset: str) -> Source:
        if self._given:
            return self._given
        if dataset not in self._brought:
            folder = self._scratch / f"set{len(self._brought)}"
            revision, licence = self._download(dataset, self._pinned.get(dataset), folder)
            self.revisions[dataset] = revision
            self.licences |= {dataset: licence} if licence else {}
            self._brought[dataset] = Source(folder)
        return self._brought[dataset]

    def digests(self) -> dict[str, str]:
        """The SHA-256 of each file that was read, by its name in the source."""
        sources = [self._given] if self._given else self._brought.values()
        return {
            path.relative_to(source.folder).as_posix(): file_digest(path)
            for source in sources
            for path in source.files
            if path in self.files
        }

    def nothing(self, benchmark: Benchmark) -> str:
        """Why a benchmark could not be fetched."""
        if not self._given:
            return f"the hub's files of {some(self.revisions)} have no split that its tasks read"
        files = self._given.others(set())
        found = f"not understood: {some(files, 150)}" if files else "no data file there"
        return (
            f"{self._given.folder}: no data of {benchmark.name} ({found}); its files must have the "
            "names and columns that the hub or the benchmark's authors gave them"
        )


@dataclass(frozen=True)
class _Planned:
    """A task, and its rows by split: those to score, and the examples for prompts."""

    task: Task
    scored: Mapping[str, list[Row]]
    examples: Mapping[str, list[Row]]
    shots: int


def _plan(benchmark: Benchmark, data: _Data, bare: bool = False) -> list[_Planned] | None:
    """What to write for each task, without rows to score if the source has none.

    None if a task needs examples that the source lacks; with `bare`, its questions then have none.
    """
    found = []
    for task in benchmark.tasks():
        split = task.config.get("test_split") or task.config.get("validation_split")
        rows = data.rows(task.config, str(split)) if split else None
        shots = benchmark.shots if isinstance(benchmark.shots, int) else int(task.config.get("num_fewshot") or 0)
        examples: Mapping[str, list[Row]] = {}
        if rows and shots and not (task.config.get("fewshot_config") or {}).get("samples"):
            place = next((one for key in EXAMPLES if (one := task.config.get(key)) and one != split), None)
            drawn = data.rows(task.config, place) if place else None
            if not drawn and not bare:
                return None
            examples, shots = ({str(place): drawn}, shots) if drawn else ({}, 0)
        found.append(_Planned(task, {str(split): rows} if rows else {}, examples, shots))
    return found


def _write(benchmark: Benchmark, out: Path, plan: list[_Planned], data: _Data, notes: list[str]) -> dict[str, Any]:
    """Write the folder of a benchmark and return its record."""
    used = sorted({str(one.task.config["dataset_path"]) for one in plan})
    licences = [data.licences[name] for name in used if name in data.licences]
    with new_folder(out) as folder:
        (folder / "data").mkdir()
        (folder / ".gitignore").write_text("data/\n", encoding="utf-8")
        files: dict[str, dict[str, Any]] = {}
        for one in plan:
            named = {}
            for splits, items in ((one.scored, True), (one.examples, False)):
                for split, rows in splits.items():
                    named[split] = _data_file(folder, one.task.config, split, rows, items, files)
            _write_yaml(folder / f"{one.task.name}.yaml", benchmark.name, _config(benchmark, one, named))
        if [benchmark.name] != [one.task.name for one in plan]:
            group: dict[str, Any] = {"group": benchmark.name, "task": [one.task.name for one in plan]}
            if benchmark.by_size():
                group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
            _write_yaml(folder / f"{benchmark.name}.yaml", benchmark.name, group)
        for path in sorted(folder.glob("*.yaml")):
            files[path.name] = {"digest": file_digest(path), "bytes": path.stat().st_size, "rows": 0, "items": False}
        known = benchmark.licence != UNKNOWN_LICENCE
        record = {
            "format": 1,
            "suite": benchmark.name,
            "licence": benchmark.licence if known else ", ".join(licences) or UNKNOWN_LICENCE,
            "harness": version("lm_eval"),
            "sources": used,
            "revisions": {name: data.revisions[name] for name in used if name in data.revisions},
            "read": data.digests(),
            "tasks": [one.task.name for one in plan],
            "files": files,
            "notes": notes,
        }
        write_json_atomically(folder / RECORD, record)
    return record


def _data_file(
    folder: Path,
    config: Mapping[str, Any],
    split: str,
    rows: list[Row],
    items: bool,
    files: dict[str, dict[str, Any]],
) -> str:
    """Write the rows once; returns the file's name."""
    import pyarrow
    import pyarrow.parquet

    part = config.get("dataset_name")
    parts = [config["dataset_path"].rpartition("/")[2], *([part] if isinstance(part, str) else []), split]
    name = f"data/{'-'.join(re.sub(r'[^A-Za-z0-9_.]', '_', one) for one in parts)}.parquet"
    if name not in files:
        with reading(name.removeprefix("data/"), "repair the rows of the source", InputError, pyarrow.ArrowException):
            table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / name)
        files[name] = {
            "digest": file_digest(folder / name),
            "bytes": (folder / name).stat().st_size,
            "rows": len(rows),
            "items": items,
        }
    files[name]["items"] |= items
    return name


def _config(benchmark: Benchmark, planned: _Planned, files: Mapping[str, str]) -> dict[str, Any]:
    """The task file: what the harness's has, with the data replaced and the splits that are not there taken away."""
    task = planned.task
    base = {"harness": task.file, **benchmark.keys} if task.file else dict(task.config)
    base |= {key: None for key in SPLITS if task.config.get(key) not in files}
    if not task.file:
        base = {key: value for key, value in base.items() if value is not None and key != "dataset_name"}
    elif task.config.get("dataset_name") is not None:
        base["dataset_name"] = None
    local = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": dict(files)}, "num_fewshot": planned.shots}
    return {"task": task.name} | base | local


def _write_yaml(path: Path, suite: str, content: Mapping[str, Any]) -> None:
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, (HEADER.format(suite) + text).encode())
