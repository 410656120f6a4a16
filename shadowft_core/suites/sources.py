"""A folder with the data of benchmarks: finds the rows of a data set's split, in a hub's layout or a public copy's."""

import csv
import fnmatch
import gzip
import io
import json
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError
from shadowft_core.suites.shapes import LETTERS, SHAPES, Row

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_MMLU = ("cais/mmlu", "hails/mmlu_no_train")
_SPLITS = {"validation": ("validation", "val"), "dev": ("dev",), "test": ("test",), "train": ("train",)}


@dataclass
class Source:
    """The data files below a folder."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        """Every data file, text files also as .gz, sorted."""
        if not self.folder.is_dir():
            what = "a file" if self.folder.is_file() else "no such folder"
            raise InputError(f"{self.folder}: {what}; name the folder of the data with --from")
        found = (path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(path for path in found if _kind(path) in SUFFIXES)

    @cached_property
    def first_rows(self) -> dict[Path, Row]:
        """The first row of each file that has one."""
        found = {}
        for path in self.files:
            row = next(_rows(path, only_first=True), None)
            if isinstance(row, dict):
                found[path] = row
        return found

    def rows(self, dataset: str, name: str | None, split: str) -> tuple[list[Row], list[Path]] | None:
        """The rows of a split of a data set (`dataset_path`, `dataset_name`) and their files; None if there are none.

        Raises InputError if several files could be it, and for a file that cannot be read.
        """
        for files in (self._hub_layout(dataset, name, split), self._mmlu(dataset, name, split)):
            if files:
                return [row for path in files for row in _mmlu_or_rows(path, dataset)], files
        if dataset == "SaylorTwift/bbh" and (found := [p for p in self.files if p.name == f"{name}.json"]):
            return [{"input": row["input"], "target": row["target"]} for row in _rows(found[0])], found[:1]
        for shape in SHAPES.get(dataset, ()):
            fitting = [path for path, row in self.first_rows.items() if shape.fits(path, row, name, split)]
            for place in ("parts", "name"):
                fitting = [path for path in fitting if shape.has_word(getattr(path, place))] or fitting
            if len(fitting) > 1:
                shown = ", ".join(str(path.relative_to(self.folder)) for path in fitting[:5])
                raise InputError(f"{self.folder}: {shown} could all be {dataset} {name or ''} {split}; keep one there")
            if fitting:
                try:
                    converted = [shape.convert(row) for row in _rows(fitting[0]) if shape.is_of(row, name)]
                except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
                    raise InputError(f"{fitting[0]}: a row is not like the first ({error!r:.100}); repair it") from None
                return converted, fitting
        return None

    def others(self, used: Set[Path]) -> list[str]:
        """The names of the data files that are not among these."""
        return [path.relative_to(self.folder).as_posix() for path in self.files if path not in used]

    def _hub_layout(self, dataset: str, name: str | None, split: str) -> list[Path]:
        """The files that a hub's data card names for the split, or that follow a hub's naming of folders and files."""
        for root in (self.folder, self.folder / dataset.rpartition("/")[2], self.folder / dataset):
            patterns = _card_patterns(root / "README.md", name, split)
            if not patterns:
                endings = ["-[0-9]*", ".*"] if name or root != self.folder else ["-[0-9]*"]
                patterns = [f"{at}{split}{end}" for at in ([f"{name}/"] if name else ["data/", ""]) for end in endings]
            found = [
                path
                for path in self.files
                if path.is_relative_to(root)
                and any(fnmatch.fnmatch(path.relative_to(root).as_posix(), pattern) for pattern in patterns)
            ]
            if found:
                return found
        return []

    def _mmlu(self, dataset: str, name: str | None, split: str) -> list[Path]:
        """`SUBJECT_test.csv` and so on, as the authors released them."""
        if dataset not in _MMLU:
            return []
        names = [f"{name}_{word}.csv" for word in _SPLITS.get(split, ())]
        return [path for path in self.files if path.name in names][:1]


def _card_patterns(card: Path, name: str | None, split: str) -> list[str]:
    """What the data card of a hub's data set names as the files of a split."""
    import yaml

    if not card.is_file():
        return []
    parts = card.read_text(encoding="utf-8").split("---", 2)
    try:
        configs = (yaml.safe_load(parts[1]) or {}).get("configs") or [] if len(parts) == 3 and not parts[0] else []
    except yaml.YAMLError:
        return []
    found: list[str] = []
    for config in configs:
        if config.get("config_name") == (name or config.get("config_name")):
            files = config.get("data_files") or []
            for one in files if isinstance(files, list) else [{"split": "train", "path": files}]:
                if isinstance(one, dict) and one.get("split") == split:
                    found += one["path"] if isinstance(one["path"], list) else [one["path"]]
            break
    return found


def _kind(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _mmlu_or_rows(path: Path, dataset: str) -> Iterator[Row]:
    if dataset not in _MMLU or path.suffix != ".csv":
        yield from _rows(path)
        return
    subject = path.name.rpartition("_")[0]
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if len(row) != 6 or row[5] not in LETTERS[:4]:
                raise InputError(f"{path}: row {number} is not question, four choices and a letter; repair it")
            answer = LETTERS.index(row[5])
            yield {"question": row[0], "subject": subject, "choices": row[1:5], "answer": answer}


def _rows(path: Path, only_first: bool = False) -> Iterator[Any]:
    """Every row of a file: JSON lines, a JSON list, the list in a JSON object (`examples`, `data`), CSV or Parquet."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1 if only_first else 1000):
                yield from batch.to_pylist()
            return
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")  # type: ignore[arg-type,unused-ignore]
            if _kind(path) == ".csv":
                yield from csv.DictReader(file)
            elif _kind(path) == ".jsonl" or not _is_one_value(file):
                yield from (json.loads(line) for line in file if line.strip())
            else:
                value = json.load(file)
                inside = value.get("examples", value.get("data", [value])) if isinstance(value, dict) else value
                yield from inside if isinstance(inside, list) else [value]
    except (OSError, ValueError, EOFError) as error:
        if only_first:
            return  # a file of another kind, which is named as not used
        raise InputError(f"{path}: not readable ({' '.join(str(error).split()):.150}); repair or replace it") from None


def _is_one_value(file: Any) -> bool:
    """Whether a .json file is one value, and not a value a line."""
    try:
        json.loads(file.readline())
        more = file.readline().strip()
    except ValueError:
        return True
    finally:
        file.seek(0)
    return not more
