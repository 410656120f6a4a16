"""Decontamination: finds training rows that are also in the evaluation items."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError
from shadowft_core.prepare.files import SUFFIXES, read_rows, whole_json
from shadowft_core.prepare.shapes import CONTEXTS
from shadowft_core.prepare.table import fold, words_of

COMMON = 10  # items of a file, as in the same report
NGRAM = 13  # words, as in the GPT-3 report (Brown et al. 2020, appendix C)
PIECE = 5  # words; the probe that precedes the comparison of sequences
MIN_WORDS = 3  # shorter texts are compared only if they are questions, or the answer "yes" would match many rows
QUESTION_KEYS = {"question", "prompt", "query", "instruction", "input", "problem", "text", "user", "content"}


class Items:
    """The texts of a task folder, indexed for the comparison with training rows.

    What many items of a file share, such as the instruction before each question, tells nothing: a text or sequence
    in more than COMMON items, or in more than half of them and more than two. Equal items count once.

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
        self._units: list[tuple[str, int]] = []
        """item and number of telling sequences of each text"""
        self._grams: dict[str, list[int]] = {}
        self._pieces: set[str] = set()
        if tasks is None:
            return
        self.not_compared = sorted(filter(None, map(_elsewhere, sorted(tasks.rglob("*.yaml")))))
        for path in sorted(p for p in tasks.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
            name = path.relative_to(tasks).as_posix()
            try:
                self.add({f"{name}:{number}": item for number, item in _items(path)})
            except RecursionError:
                raise DataError(f"{path}: an item is nested too deeply; leaked rows would go unnoticed") from None

    def add(self, items: dict[str, Any]) -> None:
        """Index the items of one file by their names in reports."""
        self.count += len(items)
        texts = {name: list(_texts(item)) for name, item in items.items()}
        asked = {name: {fold(text) for key, text in found if _counts(key, text)} for name, found in texts.items()}
        grams = {name: set().union(*(ngrams(words_of(text)) for _, text in found)) for name, found in texts.items()}
        distinct = {frozenset(fold(text) for _, text in found): name for name, found in texts.items()}.values()
        most = min(COMMON, max(2, len(distinct) // 2))
        generic = {text for text, n in Counter(text for name in distinct for text in asked[name]).items() if n > most}
        shared = {gram for gram, n in Counter(gram for name in distinct for gram in grams[name]).items() if n > most}
        for name, found in texts.items():
            for text in asked[name] - generic - {""}:
                self._exact.setdefault(text, name)
            for words in {tuple(words_of(text)) for _, text in found}:
                if telling := ngrams(words) - shared:
                    self._pieces |= ngrams(words, PIECE)
                    for gram in telling:
                        self._grams.setdefault(gram, []).append(len(self._units))
                    self._units.append((name, len(telling)))

    def match(self, asked: list[str], first: str | None = None) -> tuple[str, str] | None:
        """The first item that matches these user turns, and the rule by which, or None.

        `first` is the first user turn, folded, where that is known.


        `exact`: a user turn equals a text of the item after folding case and white space.
        `13-gram`: at least half of the telling 13-word sequences of a text of the item are in the user turns. A text
        of fewer words has none.
        """
        if not self.count:
            return None
        for text in (fold(asked[0]) if first is None else first, *map(fold, asked[1:])):
            if source := self._exact.get(text):
                return source, "exact"
        grams = set().union(*map(self.shared, asked))
        if not grams:
            return None
        hits = Counter(unit for gram in grams for unit in self._grams[gram])
        over = [unit for unit, n in hits.items() if 2 * n >= self._units[unit][1]]
        return (self._units[min(over)][0], f"{NGRAM}-gram") if over else None

    def shared(self, text: str) -> set[str]:
        """The sequences of a text that are also in an item.

        Any NGRAM words hold one of the pieces looked up here, so most texts are done without their sequences.
        """
        words = words_of(text)
        starts = range(0, len(words) - PIECE + 1, NGRAM - PIECE + 1)
        if len(words) < NGRAM or self._pieces.isdisjoint([" ".join(words[at : at + PIECE]) for at in starts]):
            return set()
        return {gram for gram in ngrams(words) if gram in self._grams}


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
        whole = _instruction(value)
        if whole:
            yield "instruction", whole
        for name, inner in value.items():
            if not (whole and name == "instruction" and len(words_of(inner)) < NGRAM):
                yield from _texts(inner, str(name).casefold())
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _instruction(item: dict[str, Any]) -> str | None:
    """An instruction with its input, as a row asks it: the instruction alone, `Summarize:`, is in many clean rows."""
    inputs = [item[name] for name in CONTEXTS if isinstance(item.get(name), str) and item[name].strip()]
    return f"{item['instruction']}\n{inputs[0]}" if inputs and isinstance(item.get("instruction"), str) else None


def _counts(key: str, text: str) -> bool:
    """Whether a row that equals a text is a leak."""
    return key in QUESTION_KEYS or len(words_of(text)) >= MIN_WORDS


def ngrams(words: Sequence[str], size: int = NGRAM) -> set[str]:
    return {" ".join(words[at : at + size]) for at in range(len(words) - size + 1)}
