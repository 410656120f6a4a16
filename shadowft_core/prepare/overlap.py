"""Decontamination: finds rows that are in the test items of the task folder."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import DataError, EvaluationError
from shadowft_core.files.rows import SUFFIXES, read_rows, whole_json
from shadowft_core.prepare.shapes import CONTEXTS
from shadowft_core.prepare.table import fold, words_of

if TYPE_CHECKING:
    from shadowft_core.suites import ItemFiles

# NGRAM and COMMON are those of the GPT-3 report (Brown et al. 2020, appendix C).
NGRAM = 13  # words in a sequence
COMMON = 10  # items; a sequence in more items of a file is not compared
PIECE = 5  # words; a quick test before sequences are compared
MIN_WORDS = 3  # shorter texts are compared only if they are questions: the answer "yes" is in many rows
QUESTION_KEYS = {"question", "prompt", "query", "instruction", "input", "problem", "text", "user", "content"}


class Items:
    """The texts of a task folder, indexed so that rows can be compared with them.

    A text or sequence is common if it is in more than COMMON items of a file, or in more than half of them and more
    than two. Common ones, such as an instruction before each question, are not compared. Equal items count once.

    `count` is the number of items: all rows of all data files below the folder, without few-shot examples, and of the
    files elsewhere that the named tasks read. `not_compared` has the names of tasks whose items are in no such file.
    """

    def __init__(self, tasks: Path | None, names: Iterable[str] = ()) -> None:
        """`names` are those of params.yaml: tasks and groups.

        Raises DataError if the folder is missing, a task file is not readable, or a data file cannot be read in full.
        """
        self.not_compared: list[str] = []
        if tasks is not None and not tasks.is_dir():
            raise DataError(f"{tasks}: no such task folder; check evaluate.tasks in params.yaml")
        self.count = 0
        self._exact: dict[str, str] = {}
        self._units: list[tuple[str, int]] = []
        """for each text its item, and the number of its sequences that are not common"""
        self._grams: dict[str, list[int]] = {}
        self._pieces: set[str] = set()
        if tasks is None:
            return
        found = _item_files(tasks, names)
        self.not_compared = found.not_compared
        for name, path in found.files.items():
            try:
                self.add({f"{name}:{number}": item for number, item in _items(path)})
            except RecursionError:
                raise DataError(f"{path}: an item is nested too deeply to be compared; flatten it") from None

    def add(self, items: dict[str, Any]) -> None:
        """Index the items of one file; the keys are the names of the items in reports."""
        self.count += len(items)
        texts = {name: list(_texts(item)) for name, item in items.items()}
        whole = {name: {fold(text) for key, text in pairs if _is_leak(key, text)} for name, pairs in texts.items()}
        grams = {name: set().union(*(ngrams(words_of(text)) for _, text in pairs)) for name, pairs in texts.items()}
        distinct = {frozenset(fold(text) for _, text in pairs): name for name, pairs in texts.items()}.values()
        most = min(COMMON, max(2, len(distinct) // 2))
        generic = {text for text, n in Counter(text for name in distinct for text in whole[name]).items() if n > most}
        common = {gram for gram, n in Counter(gram for name in distinct for gram in grams[name]).items() if n > most}
        for name, pairs in texts.items():
            for text in whole[name] - generic - {""}:
                self._exact.setdefault(text, name)
            for words in {tuple(words_of(text)) for _, text in pairs}:
                if rare := ngrams(words) - common:
                    self._pieces |= ngrams(words, PIECE)
                    for gram in rare:
                        self._grams.setdefault(gram, []).append(len(self._units))
                    self._units.append((name, len(rare)))

    def match(self, user_turns: list[str], first: str | None = None) -> tuple[str, str] | None:
        """The first item that is in the user turns of a row, and the rule that found it; None without one.

        `first` is the folded first user turn, if the caller has it.

        `exact`: a user turn equals a text of the item. Case and white space do not count.
        `13-gram`: the user turns have at least half of the 13-word sequences of a text of the item, without the common
        ones. A text of fewer words has no such sequence.
        """
        if not self.count:
            return None
        for text in (fold(user_turns[0]) if first is None else first, *map(fold, user_turns[1:])):
            if source := self._exact.get(text):
                return source, "exact"
        grams = set().union(*map(self.shared, user_turns))
        if not grams:
            return None
        hits = Counter(unit for gram in grams for unit in self._grams[gram])
        over = [unit for unit, n in hits.items() if 2 * n >= self._units[unit][1]]
        return (self._units[min(over)][0], f"{NGRAM}-gram") if over else None

    def shared(self, text: str) -> set[str]:
        """The sequences of a text that are also in an item.

        First looks up pieces at such distances that every sequence holds one of them. Most texts have none.
        """
        words = words_of(text)
        starts = range(0, len(words) - PIECE + 1, NGRAM - PIECE + 1)
        if len(words) < NGRAM or self._pieces.isdisjoint([" ".join(words[at : at + PIECE]) for at in starts]):
            return set()
        return {gram for gram in ngrams(words) if gram in self._grams}


def item_texts(tasks: Path) -> Iterator[tuple[str, str]]:
    """`file:row` of each item in a task folder, once for each of its texts. Raises DataError as `Items` does."""
    if not tasks.is_dir():
        raise DataError(f"{tasks}: no such task folder; check --tasks")
    for name, path in _item_files(tasks, ()).files.items():
        for number, item in _items(path):
            for _, text in _texts(item):
                yield f"{name}:{number}", text


def _item_files(tasks: Path, names: Iterable[str]) -> "ItemFiles":
    from shadowft_core.suites import item_files

    try:
        return item_files(tasks, names, SUFFIXES)
    except EvaluationError as error:
        raise DataError(str(error)) from None


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a file, or the one JSON value that it holds."""
    for row in read_rows(path):
        if row.problem:
            yield 1, _whole(path, f"row {row.number}: {row.problem}")
            return
        yield row.number, row.value


def _whole(path: Path, problem: str) -> Any:
    try:
        return whole_json(path)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: test items not readable, {problem}; correct the file") from None


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
    """An instruction followed by its input, as in a row. An instruction alone, `Summarize:`, is in many clean rows."""
    inputs = [item[name] for name in CONTEXTS if isinstance(item.get(name), str) and item[name].strip()]
    return f"{item['instruction']}\n{inputs[0]}" if inputs and isinstance(item.get("instruction"), str) else None


def _is_leak(key: str, text: str) -> bool:
    """Whether a user turn that equals this text of an item is a leak."""
    return key in QUESTION_KEYS or len(words_of(text)) >= MIN_WORDS


def ngrams(words: Sequence[str], size: int = NGRAM) -> set[str]:
    return {" ".join(words[at : at + size]) for at in range(len(words) - size + 1)}
