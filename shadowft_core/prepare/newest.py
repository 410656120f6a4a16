"""Takes dev and test from the newest rows: the latest by a date, or those that an earlier version of the data lacks."""

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
from shadowft_core.prepare.conversations import read_conversations
from shadowft_core.prepare.table import SPLITS, first_of_equals, id_numbers, id_of
from shadowft_core.prepare.turns import BadRow

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
SECOND = 1_000_000  # microseconds
SECONDS = range(10**8, 10**11)  # 1973 to 5138; years, numbers of days and milliseconds are outside
NOTE = "test and dev are the newest rows; when newer rows are added, old test rows move to other splits, also to train"


@dataclass(frozen=True)
class Ages:
    """Ages of the rows. `values` (int64) is higher for a newer row; `new` (bool) marks rows that may be held out.

    `facts` are fields of the report.
    """

    values: np.ndarray
    new: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


def moment_of(value: Any) -> int:
    """A date in microseconds since 1970; UTC if it has no time zone.

    Reads ISO 8601, seconds since 1970 as a number or text, and dates and timestamps of tables. Raises BadRow for
    anything else.
    """
    moment = value
    if isinstance(value, str):
        text = value.strip()
        try:
            moment = float(text) if re.fullmatch(r"\d{9,}(\.\d*)?", text) else dt.datetime.fromisoformat(text)
        except ValueError:
            raise BadRow(f"date not readable: expected ISO 8601 or seconds since 1970, found {text[:40]!r}") from None
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        if not math.isfinite(moment) or int(moment) not in SECONDS:
            raise BadRow(f"date not readable: expected seconds since 1970, found {value!r:.40}")
        return round(moment * SECOND)
    if isinstance(moment, dt.date) and not isinstance(moment, dt.datetime):
        moment = dt.datetime(moment.year, moment.month, moment.day, tzinfo=dt.UTC)
    if not isinstance(moment, dt.datetime):
        raise BadRow(f"date not readable: expected a date, found {value!r:.40}")
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return (aware - EPOCH) // dt.timedelta(microseconds=1)


def without_date(row: Any, name: str) -> tuple[Any, int]:
    """The row without the field `name`, and the date in that field, in microseconds since 1970.

    Returns a value that is not an object unchanged, with 0. Raises BadRow if the date is missing or not readable.
    """
    if not isinstance(row, dict):
        return row, 0
    if row.get(name) in (None, ""):
        raise BadRow(f"no date: field {name!r} is absent or empty")
    return {key: value for key, value in row.items() if key != name}, moment_of(row[name])


def ages_by_date(ids: np.ndarray, moments: np.ndarray) -> Ages:
    """Ages by date. Equal rows get the earliest of their dates."""
    _, group = np.unique(ids, axis=0, return_inverse=True)
    earliest = np.full(len(moments), np.iinfo(np.int64).max)
    np.minimum.at(earliest, group.reshape(-1), moments)
    return Ages(earliest[group.reshape(-1)], np.ones(len(moments), bool))


def ages_since(ids: np.ndarray, since: Path, columns: Mapping[str, str]) -> Ages:
    """Ages of 1 for rows that the earlier version at `since` lacks, and 0 for the others.

    Raises DataError if no row is in both versions.
    """
    earlier, bad = _earlier_ids(since, columns)
    first = first_of_equals(np.concatenate([earlier, ids]))[len(earlier) :]
    new = int(np.count_nonzero(first))
    if np.count_nonzero(first_of_equals(ids)) == new:
        raise DataError(
            f"{since}: expected an earlier version of the data, found {len(earlier)} rows, none of which is in the "
            "data; check prepare.newest.since"
        )
    facts = {"rows_of_earlier": len(earlier), "bad_rows_of_earlier": bad, "new_rows": new}
    return Ages(first.astype(np.int64), first, facts)


def hold_out(
    ids: np.ndarray, prompts: np.ndarray, ages: Ages, usable: np.ndarray, params: Prepare
) -> tuple[np.ndarray, np.ndarray]:
    """The split number of each row, and which rows are left out because a held-out, newer row has their question.

    Test is the newest share of the usable rows, dev the next newest. The hash of the question decides the order of rows
    of one age, and which of the other rows are in valid. So no question is in two splits.
    Raises DataError if there are too few new rows.
    """
    split = np.zeros(len(ids), np.uint8)
    asked_again = np.zeros(len(ids), bool)
    turned = prompts << np.uint64(32) | prompts >> np.uint64(
        32
    )  # swapped halves: the choice of valid uses the high bits
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


def report_section(newest: Newest, ages: Ages, held: dict[str, np.ndarray]) -> dict[str, Any]:
    """The section `newest` of the report. `held` has a bool mask of rows for each held-out split, by its name.

    With dates, the section has the oldest date of each of these splits.
    """
    if newest.by is None:
        return {"since": newest.since, "digest": newest.digest, **ages.facts, "note": NOTE}
    cuts = {f"oldest_in_{name}": _iso(ages.values[mask].min()) for name, mask in held.items() if mask.any()}
    return {"by": newest.by, **cuts, "note": NOTE}


def _iso(moment: int) -> str:
    return (EPOCH + dt.timedelta(microseconds=int(moment))).isoformat().replace("+00:00", "Z")


def _earlier_ids(since: Path, columns: Mapping[str, str]) -> tuple[np.ndarray, int]:
    """The ids of an earlier version, uint64 (n, 2) as in Table, and the number of its bad rows."""
    found = bytearray()
    if (since / "data-report.json").is_file():
        for name in SPLITS:
            for row in pq.read_table(since / f"{name}.parquet", columns=["id"]).column("id").to_pylist():
                found += bytes.fromhex(row)[:16]
        return id_numbers(found), 0
    bad = 0
    for _, row in read_conversations(since, columns):
        if isinstance(row, BadRow):
            bad += 1
        else:
            found += id_of(row)[:16]
    return id_numbers(found), bad
