"""A verdict without the other stages, on the scores of all arms in one parquet file or table.

No other module of this room imports this one: serving a version loads the room and has no pyarrow.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from shadowft_core.errors import EvaluationError
from shadowft_core.params import Verdict
from shadowft_core.verdict import judge, written
from shadowft_core.verdict.scores import CHAMPIONS, Arm, Role, check_same_questions

NEEDED = ("suite", "task", "item_id", "arm", "score")
OPTIONAL = ("cluster", "seed")


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
    path, rows = _called(items), _rows(items)
    runs: dict[str, dict[int, Arm]] = {}
    for row in rows:
        name, seed = row["arm"], row["seed"]
        runs.setdefault(name, {}).setdefault(seed, Arm(name, None, f"{name} {seed}", None, {}, {}, {}, seed=seed))
    if "instruct" not in runs:
        raise EvaluationError(
            f"{path}: no row has the arm `instruct`, only {', '.join(runs)}; the untouched Instruct is the reference; "
            "give its rows this name"
        )
    seen: dict[tuple[Any, ...], int] = {}
    suites: dict[str, tuple[str, int]] = {}
    for number, row in enumerate(rows, start=1):
        suite, task, item, name = (row[column] for column in ("suite", "task", "item_id", "arm"))
        known, at = suites.setdefault(task, (suite, number))
        if known != suite:
            raise EvaluationError(
                f"{path}: row {number}: task {task!r} is in suite {suite!r}, but in {known!r} in row {at}; give the "
                "two tasks different names"
            )
        earlier = seen.setdefault((name, row["seed"], task, item), number)
        if earlier != number:
            raise EvaluationError(
                f"{path}: row {number}: item {item!r} of task {task!r} is in arm {name!r} in row {earlier} already; "
                "write an item once, or its repetitions with different seeds"
            )
        _add(runs[name][row["seed"]], row)
    _check_seeds(path, rows, {name: min(by_seed) for name, by_seed in runs.items()})
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


def _add(arm: Arm, row: Mapping[str, Any]) -> None:
    task: str = row["task"]
    role: Role = "domain" if row["suite"] == "domain" else "guard"
    arm.roles[task], arm.metrics[task] = role, "score"
    arm.scores.setdefault(task, {})[row["item_id"]] = row["score"]
    if role == "guard":
        arm.groups[task] = row["suite"]
    if row["cluster"] is not None:
        arm.clusters.setdefault(task, {})[row["item_id"]] = row["cluster"]


def _check_seeds(path: str, rows: list[dict[str, Any]], first: Mapping[str, int]) -> None:
    """Raises EvaluationError if a seed of an arm has other items of a suite than its first seed, which is judged."""
    asked: dict[tuple[str, str], dict[int, set[tuple[str, str]]]] = {}
    for row in rows:
        of_seed = asked.setdefault((row["arm"], row["suite"]), {}).setdefault(row["seed"], set())
        of_seed.add((row["task"], row["item_id"]))
    for (arm, suite), seeds in asked.items():
        judged = seeds.get(first[arm], set())
        for seed, items in seeds.items():
            if differing := sorted(items ^ judged):
                task, item = differing[0]
                raise EvaluationError(
                    f"{path}: arm {arm!r} has {len(items)} items of suite {suite!r} with seed {seed}, and "
                    f"{len(judged)} with seed {first[arm]}, its first: {len(differing)} differ, such as {item!r:.60} "
                    f"of task {task!r:.60}; score the same items with every seed, the first one is judged"
                )


def _called(items: Items) -> str:
    """How an error names the items: by their file, if they have one."""
    return str(items) if isinstance(items, Path) else "scores"


def _rows(items: Items) -> list[dict[str, Any]]:
    path, rows = _called(items), _read(items)
    if not rows:
        raise EvaluationError(f"{path}: has no rows; write a row for each arm and item")
    for number, row in enumerate(rows, start=1):
        row |= {column: row.get(column) for column in OPTIONAL}
        row["seed"] = row["seed"] or 0
        for column in ("suite", "task", "arm"):
            if not isinstance(row[column], str) or not row[column]:
                raise EvaluationError(
                    f"{path}: row {number}: {column} is {row[column]!r:.60}, expected a name; correct it"
                )
        for column, remedy in (("item_id", "name the item"), ("cluster", "name it, or write null for none")):
            value = row[column]
            nan = isinstance(value, float) and not math.isfinite(value)
            if nan or (value is None and column == "item_id"):
                raise EvaluationError(f"{path}: row {number}: {column} is {value if nan else 'missing'}; {remedy}")
            row[column] = None if value is None else str(value)
        score = row["score"]
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise EvaluationError(
                f"{path}: row {number}: score is {score!r:.60}, expected a finite number; score the item again"
            )
        row["score"] = float(score)
        if not isinstance(row["seed"], int):
            raise EvaluationError(f"{path}: row {number}: seed is {row['seed']!r:.60}, expected an integer; correct it")
    return rows


def _read(items: Items) -> list[dict[str, Any]]:
    """The rows as they are. Raises EvaluationError unless all of `NEEDED` are there."""
    import pyarrow
    import pyarrow.parquet

    path = _called(items)
    if isinstance(items, Sequence):
        return [_row(number, row) for number, row in enumerate(items, start=1)]
    try:
        table = pyarrow.parquet.read_table(items) if isinstance(items, Path) else pyarrow.table(items)
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file; name an existing parquet file") from None
    except (OSError, pyarrow.ArrowException) as error:
        kind = "parquet file" if isinstance(items, Path) else "table with one type in each column"
        raise EvaluationError(f"{path}: not a {kind} ({str(error).splitlines()[0]:.200}); write it again") from None
    _require_columns(path, table.column_names)
    rows: list[dict[str, Any]] = table.select([c for c in NEEDED + OPTIONAL if c in table.column_names]).to_pylist()
    return rows


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
