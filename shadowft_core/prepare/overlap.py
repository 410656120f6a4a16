"""Decontamination: finds training rows that are also in the evaluation items."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.prepare.files import SUFFIXES, read_rows, whole_json
from shadowft_core.prepare.table import fold

NGRAM = 13  # words, as in the GPT-3 report (Brown et al. 2020, appendix C)
MIN_WORDS = 3  # shorter texts are compared only if they are questions, or the answer "yes" would match many rows
QUESTION_KEYS = {"question", "prompt", "query", "instruction", "input", "problem", "text", "user", "content"}


class Items:
    """The texts of a task folder, indexed for the comparison with training rows.

    `count` is the number of items read: every row of every data file below the folder. `not_compared` names the tasks
    whose items are not in the folder, such as those of a hub.
    """

    def __init__(self, tasks: Path | None) -> None:
        """Raises DataError when the folder is missing or one of its files cannot be read in full."""
        self.not_compared: list[str] = []
        if tasks is not None and not tasks.is_dir():
            raise DataError(f"{tasks}: no such task folder; check evaluate.tasks in params.yaml")
        self.count = 0
        self._exact: dict[str, str] = {}
        self._sources: list[str] = []
        self._sizes: list[int] = []
        self._grams: dict[str, list[int]] = {}
        if tasks is None:
            return
        self.not_compared = sorted(filter(None, map(_elsewhere, sorted(tasks.rglob("*.yaml")))))
        for path in sorted(p for p in tasks.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
            for number, item in _items(path):
                self.count += 1
                self._add(item, f"{path.relative_to(tasks).as_posix()}:{number}")

    def _add(self, item: Any, source: str) -> None:
        for key, text in _texts(item):
            folded = fold(text)
            words = _words(text)
            if folded and (key in QUESTION_KEYS or len(words) >= MIN_WORDS):
                self._exact.setdefault(folded, source)
            if grams := _ngrams(words):
                for gram in grams:
                    self._grams.setdefault(gram, []).append(len(self._sizes))
                self._sizes.append(len(grams))
                self._sources.append(source)

    def match(self, asked: list[str]) -> tuple[str, str] | None:
        """The first item that matches these user turns, and the rule by which, or None.

        `exact`: a user turn equals a text of the item after folding case and white space.
        `13-gram`: at least half of the distinct 13-word sequences of a text of the item are in the user turns.
        """
        for text in asked:
            if source := self._exact.get(fold(text)):
                return source, "exact"
        grams = set().union(*(_ngrams(_words(text)) for text in asked))
        hits = Counter(unit for gram in grams for unit in self._grams.get(gram, ()))
        over = [unit for unit, n in hits.items() if 2 * n >= self._sizes[unit]]
        return (self._sources[min(over)], f"{NGRAM}-gram") if over else None


def item_texts(tasks: Path) -> Iterator[tuple[str, str]]:
    """`file:row` and each text of every item of a task folder. Raises DataError as `Items` does."""
    if not tasks.is_dir():
        raise DataError(f"{tasks}: no such task folder; check --tasks")
    for path in sorted(p for p in tasks.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        for number, item in _items(path):
            for _, text in _texts(item):
                yield f"{path.relative_to(tasks).as_posix()}:{number}", text


def _elsewhere(path: Path) -> str | None:
    """The name of the task of a file whose items are not beside it; None for any other file."""
    import yaml

    class Plain(yaml.SafeLoader):
        """Reads `!function` and the like as nothing."""

    Plain.add_multi_constructor("!", lambda loader, tag, node: None)
    try:
        config = yaml.load(path.read_bytes(), Plain)  # noqa: S506 a SafeLoader
    except (OSError, yaml.YAMLError):
        return None  # `evaluate` names it
    if not isinstance(config, dict) or not isinstance(config.get("task"), str) or "dataset_path" not in config:
        return None
    local = config["dataset_path"] in ("json", "csv", "parquet", "arrow", "text")
    return None if local and (config.get("dataset_kwargs") or {}).get("data_files") else str(config["task"])


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file, or the one JSON object that it holds, over many lines."""
    for row in read_rows(path):
        if row.problem:
            yield 1, _whole(path, f"row {row.number}: {row.problem}")
            return
        yield row.number, row.value


def _whole(path: Path, problem: str) -> Any:
    try:
        return whole_json(path)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: task file not readable, {problem}; correct it, or leaked rows go unnoticed") from None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in an item, with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, str(name).casefold())
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _ngrams(words: list[str]) -> set[str]:
    return {" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}
