"""A folder with the data of benchmarks: finds the rows of a data set's split, in a hub's layout or a public copy's."""

import fnmatch
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from shadowft_core.errors import InputError
from shadowft_core.files import read_regular
from shadowft_core.files.rows import csv_rows, format_of, is_text, read_rows
from shadowft_core.files.yamlfile import Loader, parse_yaml
from shadowft_core.limits import CONFIG_BYTES, ITEMS, VALUE_CHARACTERS
from shadowft_core.suites.shapes import LETTERS, SHAPES, Row, Shape

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_MMLU = ("cais/mmlu", "hails/mmlu_no_train")
_SPLITS = {"validation": ("validation", "val"), "dev": ("dev",), "test": ("test",), "train": ("train",)}


@dataclass
class Source:
    """The data files below a folder."""

    folder: Path

    @cached_property
    def files(self) -> list[Path]:
        """Every data file, text files also as .gz and .zst, sorted."""
        if not self.folder.is_dir():
            what = "a file" if self.folder.is_file() else "no such folder"
            raise InputError(f"{self.folder}: {what}; name the folder of the data with --from")
        found = (path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        return sorted(path for path in found if format_of(path) in SUFFIXES)

    @cached_property
    def first_rows(self) -> dict[Path, Row]:
        """The first row of each file that has one."""
        found = {}
        for path in self.files:
            try:
                row = next(_rows(path), None)
            except InputError:
                continue  # a file of another kind, which is named as not used
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
            return _converted(found[0], _bbh), found[:1]
        for shape in SHAPES.get(dataset, ()):
            fitting = [path for path, row in self.first_rows.items() if shape.fits(path, row, name, split)]
            for place in ("parts", "name"):
                fitting = [path for path in fitting if shape.has_word(getattr(path, place))] or fitting
            if len(fitting) > 1:
                shown = ", ".join(str(path.relative_to(self.folder)) for path in fitting[:5])
                raise InputError(f"{self.folder}: {shown} could all be {dataset} {name or ''} {split}; keep one there")
            if fitting:
                return _converted(fitting[0], shape.convert, partial(_is_of, shape, name)), fitting
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
    """What the data card of a hub's data set names as the files of a split; nothing if it is not readable."""
    if not card.is_file():
        return []
    try:
        parts = read_regular(card, CONFIG_BYTES, InputError).split(b"---", 2)
        head = parts[1] if len(parts) == 3 and not parts[0] else b""
        found = parse_yaml(head, card, InputError, loader=Loader, repeated=True)
    except InputError:
        return []
    configs = found.get("configs") if isinstance(found, dict) else None
    for config in filter(_is_mapping, configs if isinstance(configs, list) else ()):
        if config.get("config_name") == (name or config.get("config_name")):
            files = config.get("data_files")
            given = files if isinstance(files, list) else [{"split": "train", "path": files}]
            paths = [one.get("path") for one in filter(_is_mapping, given) if one.get("split") == split]
            several = [part for one in paths for part in (one if isinstance(one, list) else [one])]
            return [one for one in several if isinstance(one, str) and len(one) <= VALUE_CHARACTERS]
    return []


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def _is_of(shape: Shape, name: str | None, row: Row) -> bool:
    return shape.is_of(row, name)


def _bbh(row: Row) -> Row:
    return {"input": row["input"], "target": row["target"]}


def _converted(
    path: Path, convert: Callable[[Row], Row], wanted: Callable[[Row], bool] = lambda row: True
) -> list[Row]:
    rows = _rows(path)
    try:
        return [convert(row) for row in rows if wanted(row)]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: a row is not like the first ({error!r:.100}); repair it") from None


def _mmlu_or_rows(path: Path, dataset: str) -> Iterator[Row]:
    if dataset not in _MMLU or path.suffix != ".csv":
        yield from _rows(path)
        return
    subject = path.name.rpartition("_")[0]
    for number, row in enumerate(_lists(path), 1):
        if len(row) != 6 or row[5] not in LETTERS[:4]:
            raise InputError(f"{path}: row {number} is not question, four choices and a letter; repair it")
        answer = LETTERS.index(row[5])
        yield {"question": row[0], "subject": subject, "choices": row[1:5], "answer": answer}


def _rows(path: Path) -> Iterator[Any]:
    """Every row of a file. Raises InputError for one that cannot be read, and for more than ITEMS."""
    for count, row in enumerate(_named(path) if format_of(path) == ".csv" else _values(path)):
        if count == ITEMS:
            raise InputError(f"{path}: more than {ITEMS} rows, which is the limit; keep those of the benchmark")
        yield row


def _values(path: Path) -> Iterator[Any]:
    for row in read_rows(path):
        if row.problem:
            raise InputError(f"{path}: row {row.number}: {row.problem}; repair or replace the file")
        yield row.value


def _named(path: Path) -> Iterator[Row]:
    rows = _lists(path)
    names = next(rows, [])
    for row in rows:
        yield {name: row[at] if at < len(row) else None for at, name in enumerate(names)}


def _lists(path: Path) -> Iterator[Sequence[str]]:
    """The rows of a CSV file that are not empty."""
    with csv_rows(path) as reader:
        for row in filter(None, reader):
            if not is_text("".join(row)):
                raise InputError(f"{path}: line {reader.line_num}: invalid UTF-8; save the file as UTF-8")
            yield row
