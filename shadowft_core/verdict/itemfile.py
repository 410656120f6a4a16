"""A verdict without the other stages, on the scores of all arms in one parquet file or table.

No other module of this room imports this one: serving a version loads the room and has no pyarrow.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shadowft_core.errors import EvaluationError
from shadowft_core.files import open_regular, reading
from shadowft_core.limits import COUNT, LABEL_CHARACTERS, SCORE, SCORE_ROWS
from shadowft_core.params import Verdict
from shadowft_core.verdict import judge, written
from shadowft_core.verdict.scorefiles import Role
from shadowft_core.verdict.scores import CHAMPIONS, Arm, check_same_questions

NEEDED = ("suite", "task", "item_id", "arm", "score")
OPTIONAL = ("cluster", "seed")
BATCH = 16_384  # rows that are read at a time


class Table(Protocol):
    """A table of any library that exports Arrow streams: pyarrow, pandas, polars."""

    def __arrow_c_stream__(self, requested_schema: object | None = None, /) -> object: ...


Items = Path | Table | Sequence[Mapping[str, Any]]


def verdict_of_items(
    items: Path, candidate: str, params: Verdict, out: Path, metrics: Path | None = None
) -> dict[str, Any]:
    """`judge_items` of a parquet file; writes verdict.json and, to `metrics`, its numbers."""
    return written(judge_items(items, candidate, params), out, metrics)


def judge_items(items: Items, candidate: str, params: Verdict) -> dict[str, Any]:
    """Judge the arms of one parquet file, table or sequence of rows (see `read_items`); the content of verdict.json.

    It is a first look, and the arms `champion` and `best_champion` are judged if they are in the file.

    Raises EvaluationError for damaged items, or a candidate that is not among them.
    """
    arms = read_items(items)
    if candidate not in arms or candidate in ("instruct", *CHAMPIONS):
        others = ", ".join(name for name in arms if name not in ("instruct", *CHAMPIONS))
        raise EvaluationError(
            f"{_called(items)}: candidate is {candidate!r}, but only these arms may ship: {others}; name one"
        )
    return judge(arms, params, candidate=candidate) | {"recipe_digest": None}


def read_items(items: Items) -> dict[str, Arm]:
    """The arms of a parquet file, table or sequence of rows.

    Its columns are suite, task, item_id, arm, score and, optionally, cluster and seed. `suite` is `domain` or the name
    of a guard; the arm `instruct` is the reference. An arm stands for the model of its lowest seed, which is the one
    that ships; `further` has the others.

    Raises EvaluationError naming file, row (counted from 1) and remedy if a column or value is missing or of the wrong
    kind, an item is twice in an arm, or the arms did not answer the same items.
    """
    path = _called(items)
    runs: dict[str, dict[int, Arm]] = {}
    suites: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(_rows(items), start=1):
        by_seed = runs.setdefault(row.arm, {})
        if row.seed not in by_seed:
            by_seed[row.seed] = Arm(row.arm, None, f"{row.arm} {row.seed}", None, {}, {}, {}, seed=row.seed)
        known, at = suites.setdefault(row.task, (row.suite, number))
        if known != row.suite:
            raise EvaluationError(
                f"{path}: row {number}: task {row.task!r} is in suite {row.suite!r}, but in {known!r} in row {at}; "
                "give the two tasks different names"
            )
        if not _add(by_seed[row.seed], row):
            earlier = next(at for at, one in enumerate(_rows(items), start=1) if one.key == row.key)
            raise EvaluationError(
                f"{path}: row {number}: item {row.item_id!r} of task {row.task!r} is in arm {row.arm!r} in row "
                f"{earlier} already; write an item once, or its repetitions with different seeds"
            )
    if not runs:
        raise EvaluationError(f"{path}: has no rows; write a row for each arm and item")
    if "instruct" not in runs:
        raise EvaluationError(
            f"{path}: no row has the arm `instruct`, only {', '.join(runs)}; the untouched Instruct is the reference; "
            "give its rows this name"
        )
    _check_seeds(path, runs)
    arms = {}
    for name, by_seed in sorted(runs.items()):
        first, *others = (by_seed[seed] for seed in sorted(by_seed))
        fixed = name in ("instruct", *CHAMPIONS) and not others
        arms[name] = replace(first, seed=None if fixed else first.seed, further=tuple(others))
    if not arms["instruct"].tasks("domain"):
        guards = ", ".join(arms["instruct"].guards())
        raise EvaluationError(
            f"{path}: no row of instruct has the suite `domain`, only {guards:.400}; name the suite that must gain so"
        )
    for arm in arms.values():
        for run in arm.runs:
            try:
                check_same_questions(arms["instruct"], run)
            except EvaluationError as error:
                raise EvaluationError(f"{path}: {error}") from None
    return arms


def _add(arm: Arm, row: "_Row") -> bool:
    """Add an item; False if the arm has it."""
    role: Role = "domain" if row.suite == "domain" else "guard"
    arm.roles[row.task], arm.metrics[row.task] = role, "score"
    scores = arm.scores.setdefault(row.task, {})
    if row.item_id in scores:
        return False
    scores[row.item_id] = row.score
    if role == "guard":
        arm.groups[row.task] = row.suite
    if row.cluster is not None:
        arm.clusters.setdefault(row.task, {})[row.item_id] = row.cluster
    return True


def _check_seeds(path: str, runs: Mapping[str, Mapping[int, Arm]]) -> None:
    """Raises EvaluationError if a seed of an arm has other items of a suite than its first seed, which is judged."""
    for name, by_seed in runs.items():
        first = min(by_seed)
        for suite in dict.fromkeys(suite for run in by_seed.values() for suite in _suites(run)):
            judged = _items_of(by_seed[first], suite)
            for seed, run in by_seed.items():
                items = _items_of(run, suite)
                if items and (differing := sorted(items ^ judged)):
                    task, item = differing[0]
                    raise EvaluationError(
                        f"{path}: arm {name!r} has {len(items)} items of suite {suite!r} with seed {seed}, and "
                        f"{len(judged)} with seed {first}, its first: {len(differing)} differ, such as {item!r:.60} "
                        f"of task {task!r:.60}; score the same items with every seed, the first one is judged"
                    )


def _suites(run: Arm) -> list[str]:
    return [run.groups.get(task, "domain") for task in run.roles]


def _items_of(run: Arm, suite: str) -> set[tuple[str, str]]:
    return {(task, item) for task, its in run.scores.items() if run.groups.get(task, "domain") == suite for item in its}


def _called(items: Items) -> str:
    """How an error names the items: by their file, if they have one."""
    return str(items) if isinstance(items, Path) else "scores"


class _Row(NamedTuple):
    suite: str
    task: str
    item_id: str
    arm: str
    score: float
    cluster: str | None
    seed: int

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.arm, self.seed, self.task, self.item_id


def _rows(items: Items) -> Iterator[_Row]:
    """The rows, checked one at a time."""
    path = _called(items)
    for number, row in enumerate(_read(items), start=1):
        if number > SCORE_ROWS:
            raise EvaluationError(f"{path}: more than {SCORE_ROWS} rows, the limit; judge fewer items at a time")
        where = f"{path}: row {number}"
        for column in ("suite", "task", "arm"):
            if not isinstance(row[column], str) or not row[column]:
                raise EvaluationError(f"{where}: {column} is {row[column]!r:.60}, expected a name; correct it")
            _require_short(where, column, row[column])
        item = _named(where, "item_id", row["item_id"], "name the item")
        cluster = _named(where, "cluster", row.get("cluster"), "name it, or write null for none")
        if item is None:
            raise EvaluationError(f"{where}: item_id is missing; name the item")
        score, seed = row["score"], row.get("seed") or 0
        if not isinstance(score, int | float) or not -SCORE <= score <= SCORE:  # True is 1
            raise EvaluationError(
                f"{where}: score is {score!r:.60}, expected a finite number; score the item again, below {SCORE:g}"
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) > COUNT:
            raise EvaluationError(f"{where}: seed is {seed!r:.60}, expected an integer; correct it")
        suite, task, item, arm = (sys.intern(name) for name in (row["suite"], row["task"], item, row["arm"]))
        yield _Row(suite, task, item, arm, float(score), cluster and sys.intern(cluster), seed)


def _named(where: str, column: str, value: Any, remedy: str) -> str | None:
    """The name of an item or a cluster, which may be a number. Raises EvaluationError for what names nothing."""
    if value is None:
        return None
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise EvaluationError(f"{where}: {column} is {value!r:.60}; {remedy}")
    _require_short(where, column, str(value))
    return str(value)


def _require_short(where: str, column: str, text: str) -> None:
    if len(text) > LABEL_CHARACTERS:
        raise EvaluationError(
            f"{where}: {column} has {len(text)} characters, the limit is {LABEL_CHARACTERS}; shorten it"
        )


def _read(items: Items) -> Iterator[Mapping[str, Any]]:
    """The rows as they are, from batches. Raises EvaluationError unless all of `NEEDED` are there."""
    path = _called(items)
    if isinstance(items, Sequence):
        for number, row in enumerate(items, start=1):
            yield _row(number, row)
        return
    import pyarrow
    import pyarrow.parquet

    also = (pyarrow.ArrowException, OSError)
    kind = "a parquet file" if isinstance(items, Path) else "a table with one type in each column"
    remedy = f"write {kind} of {', '.join(NEEDED)}"
    with ExitStack() as stack:
        with reading(path, remedy, EvaluationError, *also):
            if isinstance(items, Path):
                file = stack.enter_context(open(open_regular(items, EvaluationError), "rb"))
                source = pyarrow.parquet.ParquetFile(file)
                columns = _columns(path, source.schema_arrow, source.metadata.num_rows)
                batches = source.iter_batches(BATCH, columns=columns, use_threads=False)
            else:
                table = pyarrow.table(items)
                columns = _columns(path, table.schema, table.num_rows)
                batches = iter(table.select(columns).to_batches(BATCH))
        while True:
            with reading(path, remedy, EvaluationError, *also):
                if (batch := next(batches, None)) is None:
                    return
                rows = batch.to_pylist()
            yield from rows


def _columns(path: str, schema: Any, rows: int) -> list[str]:
    """The columns to read. Raises EvaluationError if one is missing, appears twice or has another type than text,
    number and truth value, or if there are too many rows."""
    from pyarrow import types

    if rows > SCORE_ROWS:
        raise EvaluationError(f"{path}: {rows} rows, the limit is {SCORE_ROWS}; judge fewer items at a time")
    _require_columns(path, schema.names)
    found = [name for name in NEEDED + OPTIONAL if name in schema.names]
    for name in found:
        if schema.names.count(name) > 1:
            raise EvaluationError(f"{path}: column {name!r} appears {schema.names.count(name)} times; keep one")
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        plain = (types.is_string, types.is_large_string, types.is_string_view, types.is_integer, types.is_floating)
        if not any(of(kind) for of in (*plain, types.is_boolean, types.is_null)):
            raise EvaluationError(f"{path}: column {name!r} has the type {kind}, expected text or a number; convert it")
    return found


def _row(number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise EvaluationError(f"scores: row {number}: {row!r:.60}, expected a mapping of {', '.join(NEEDED)}")
    _require_columns(f"scores: row {number}", [str(name) for name in row])
    return {name: _plain(row[name]) for name in NEEDED + OPTIONAL if name in row}


def _require_columns(where: str, names: Sequence[str]) -> None:
    if missing := [name for name in NEEDED if name not in names]:
        raise EvaluationError(
            f"{where}: has no column {missing[0]!r}, only {', '.join(names)[:400]}; needed are {', '.join(NEEDED)}"
        )


def _plain(value: Any) -> Any:
    """A numpy scalar as the Python value."""
    return value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value
