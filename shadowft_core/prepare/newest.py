"""Dev and test from the newest rows: the latest by a date, or those that an earlier version of the data lacks."""

import datetime as dt
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from shadowft_core.errors import DataError
from shadowft_core.params import Newest, Prepare
from shadowft_core.prepare.files import data_files, read_rows
from shadowft_core.prepare.images import Gallery
from shadowft_core.prepare.shapes import conversation_of
from shadowft_core.prepare.table import SPLITS, first_of_equals, id_numbers, id_of
from shadowft_core.prepare.turns import BadRow

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SECOND = 1_000_000  # microseconds
SECONDS = range(10**8, 10**11)  # 1973 to 5138: a year, a day count and milliseconds lie outside
NOTE = "test and dev hold the newest rows: when newer rows come, old test rows move to other splits, also to train"


@dataclass(frozen=True)
class Ages:
    """Per row, int64, higher for newer; `new`: which rows may be held out, bool. `facts` go into the report."""

    values: np.ndarray
    new: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


def moment_of(value: Any) -> int:
    """A date in microseconds since 1970, UTC where it names no time zone. Raises BadRow.

    ISO 8601, seconds since 1970 as a number or its text, or a date or timestamp of a table.
    """
    moment = value
    if isinstance(value, str):
        text = value.strip()
        try:
            moment = float(text) if re.fullmatch(r"\d{9,}(\.\d*)?", text) else dt.datetime.fromisoformat(text)
        except ValueError:
            raise BadRow(f"date not readable: {text[:40]!r}") from None
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        if not math.isfinite(moment) or int(moment) not in SECONDS:
            raise BadRow(f"date not readable: expected seconds since 1970, found {value!r:.40}")
        return round(moment * SECOND)
    if isinstance(moment, dt.date) and not isinstance(moment, dt.datetime):
        moment = dt.datetime(moment.year, moment.month, moment.day, tzinfo=dt.UTC)
    if not isinstance(moment, dt.datetime):
        raise BadRow(f"date not readable: {value!r:.40}")
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (aware - EPOCH) // dt.timedelta(microseconds=1)


def without_date(row: Any, name: str) -> tuple[Any, int]:
    """The row without the field `name`, and its date. Raises BadRow; what is no object stays as it is."""
    if not isinstance(row, dict):
        return row, 0
    if row.get(name) in (None, ""):
        raise BadRow(f"no date: field {name!r} is absent or empty")
    return {key: value for key, value in row.items() if key != name}, moment_of(row[name])


def ages_by_date(ids: np.ndarray, moments: np.ndarray) -> Ages:
    """The age of each row is its date, of equal rows the earliest."""
    _, group = np.unique(ids, axis=0, return_inverse=True)
    earliest = np.full(len(moments), np.iinfo(np.int64).max)
    np.minimum.at(earliest, group.reshape(-1), moments)
    return Ages(earliest[group.reshape(-1)], np.ones(len(moments), bool))


def ages_since(ids: np.ndarray, since: Path, columns: Mapping[str, str]) -> Ages:
    """The age of a row is 1 if the earlier version lacks it, else 0.

    Raises DataError when no row is in both versions.
    """
    earlier, bad = _earlier_ids(since, columns)
    first = first_of_equals(np.concatenate([earlier, ids]))[len(earlier) :]
    new = int(np.count_nonzero(first))
    if np.count_nonzero(first_of_equals(ids)) == new:
        raise DataError(
            f"{since}: expected an earlier version of the data, found {len(earlier)} rows and none of them in the "
            "data; check prepare.newest.since"
        )
    facts = {"rows_of_earlier": len(earlier), "bad_rows_of_earlier": bad, "new_rows": new}
    return Ages(first.astype(np.int64), first, facts)


def hold_out(
    ids: np.ndarray, prompts: np.ndarray, ages: Ages, usable: np.ndarray, params: Prepare
) -> tuple[np.ndarray, np.ndarray]:
    """Per row the number of its split, and whether it is left out for a question that a newer row asks in dev or test.

    Test is the newest share of the usable rows, dev the next one; rows of one age come in the order of the hashes of
    their questions. Valid is chosen among the others by the hash of the question, so no question is in two splits.
    Raises DataError when there are too few new rows.
    """
    split = np.zeros(len(ids), np.uint8)
    asked_again = np.zeros(len(ids), bool)
    turned = prompts << np.uint64(32) | prompts >> np.uint64(32)  # independent of the choice of valid
    order = np.lexsort((ids[:, 1], ids[:, 0], turned, -ages.values))
    order = order[usable[order] & ages.new[order]]
    for name, share in (("test", params.test), ("dev", params.dev)):
        free = order[(split[order] == 0) & ~asked_again[order]]
        count = round(share * np.count_nonzero(usable))
        if count > len(free):
            raise DataError(
                f"prepare.newest: expected {count} new rows for {name} ({share:g} of {np.count_nonzero(usable)} rows), "
                f"found {len(free)}; lower prepare.{name} or name an earlier version"
            )
        if count == 0:
            continue
        same = usable & (split == 0) & ~asked_again & np.isin(prompts, prompts[free[:count]])
        held = same & ages.new & (ages.values >= ages.values[free[count - 1]])
        split[held] = SPLITS.index(name)
        asked_again[same & ~held] = True
    place = prompts.astype(np.float64) / 2.0**64
    chosen = (split == 0) & ~asked_again & (place < params.valid / (1 - params.dev - params.test))
    split[chosen] = SPLITS.index("valid")
    return split, asked_again


def about(newest: Newest, ages: Ages, held: dict[str, np.ndarray]) -> dict[str, Any]:
    """The section of the report; by date with the oldest date of each split in `held`, a mask of rows by its name."""
    if newest.by is None:
        return {"since": newest.since, "digest": newest.digest, **ages.facts, "note": NOTE}
    cuts = {f"oldest_in_{name}": _iso(ages.values[mask].min()) for name, mask in held.items() if mask.any()}
    return {"by": newest.by, **cuts, "note": NOTE}


def _iso(moment: int) -> str:
    return (EPOCH + dt.timedelta(microseconds=int(moment))).isoformat().replace("+00:00", "Z")


def _earlier_ids(since: Path, columns: Mapping[str, str]) -> tuple[np.ndarray, int]:
    """The ids of an earlier version as in Table, uint64 (n, 2), and the number of its bad rows."""
    found = bytearray()
    if (since / "data-report.json").is_file():
        for name in SPLITS:
            for one in pq.read_table(since / f"{name}.parquet", columns=["id"]).column("id").to_pylist():
                found += bytes.fromhex(one)[:16]
        return id_numbers(found), 0
    bad, names = 0, Gallery(None)
    for path in data_files(since)[0]:
        for raw in read_rows(path):
            try:
                if raw.problem:
                    raise BadRow(raw.problem)
                conversation = conversation_of(raw.value, columns)
                if conversation.sources:
                    conversation = conversation._replace(images=names.keep(conversation.sources, path.parent))
                found += id_of(conversation)[:16]
            except BadRow:
                bad += 1
    return id_numbers(found), bad
