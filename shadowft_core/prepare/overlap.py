"""Decontamination: finds training rows that are also in the evaluation items."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.prepare.rows import SUFFIXES, read_rows

NGRAM = 13  # words, as in the GPT-3 report (Brown et al. 2020, appendix C)
MIN_WORDS = 3  # shorter texts are compared only if they are questions, or the answer "yes" would match many rows
QUESTION_KEYS = {"question", "prompt", "query", "instruction", "input", "problem", "text", "user", "content"}


class Items:
    """The texts of a task folder, indexed for the comparison with training rows.

    `count` is the number of items read: every row of every json, jsonl and parquet file below the folder.
    """

    def __init__(self, tasks: Path) -> None:
        """Raises DataError when the folder is missing or one of its files cannot be read in full."""
        if not tasks.is_dir():
            raise DataError(f"{tasks}: no such task folder; check evaluate.tasks in params.yaml")
        self.count = 0
        self._exact: dict[str, str] = {}
        self._sources: list[str] = []
        self._sizes: list[int] = []
        self._grams: dict[str, list[int]] = {}
        for path in sorted(p for p in tasks.rglob("*") if p.suffix in SUFFIXES and p.is_file()):
            for number, item in _items(path):
                self.count += 1
                self._add(item, f"{path.relative_to(tasks).as_posix()}:{number}")

    def _add(self, item: Any, source: str) -> None:
        for key, text in _texts(item):
            folded = _fold(text)
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
            if source := self._exact.get(_fold(text)):
                return source, "exact"
        grams = set().union(*(_ngrams(_words(text)) for text in asked))
        hits = Counter(unit for gram in grams for unit in self._grams.get(gram, ()))
        over = [unit for unit, n in hits.items() if 2 * n >= self._sizes[unit]]
        return (self._sources[min(over)], f"{NGRAM}-gram") if over else None


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file, or the one JSON object that it holds, over many lines."""
    for row in read_rows(path):
        if row.problem:
            yield 1, _whole(path, f"row {row.number}: {row.problem}")
            return
        yield row.number, row.value


def _whole(path: Path, problem: str) -> Any:
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
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


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _ngrams(words: list[str]) -> set[str]:
    return {" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}
