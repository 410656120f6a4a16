"""The stage prepare: from data files of several formats to four splits of clean conversations, and a report."""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import DataError, ParamsError
from shadowft_core.files import bytes_digest, canonical_json, new_folder, write_json_atomically
from shadowft_core.params import Prepare
from shadowft_core.prepare.overlap import Items
from shadowft_core.prepare.rows import BadRow, Message, conversation, data_files, read_rows

SPLITS = ("train", "valid", "dev", "test")


@dataclass(frozen=True)
class Row:
    """One usable conversation; `id` is the hex SHA-256 of its canonical messages, `source` is file:row."""

    id: str
    messages: list[Message]
    source: str

    @property
    def asked(self) -> list[str]:
        return [turn["content"] for turn in self.messages if turn["role"] == "user"]

    @property
    def prompt(self) -> str:
        """The first user turn, after the system text where there is one."""
        first = [turn["content"] for turn in self.messages[:2] if turn["role"] != "assistant"]
        return "\n\n".join(first)

    @property
    def reply(self) -> str:
        return next(turn["content"] for turn in self.messages if turn["role"] == "assistant")


def prepare(data: Path, tasks: Path, params: Prepare, out: Path) -> None:
    """Read, validate, normalise, deduplicate, decontaminate and split the data into the folder `out`.

    `out` gets {train,valid,dev,test}.parquet with the columns id (string, 64 hex digits), messages (list of
    {role, content}), prompt, reply and source (strings), rows sorted by id, and data-report.json with all counts, all
    refused rows and the data digest: the SHA-256 of the canonical JSON {split: sorted ids}. The split of a row depends
    on its id alone, so added rows do not move others.

    Raises DataError (nothing to read, no usable row, too many bad rows, an empty training split), and ParamsError when
    the shares leave nothing to train on.
    """
    if params.valid + params.dev + params.test >= 1:
        raise ParamsError(
            f"prepare: valid {params.valid:g} + dev {params.dev:g} + test {params.test:g} leaves nothing to train on; "
            "lower them to a sum below 1"
        )
    rows, files, bad = _read(data)
    total = len(rows) + len(bad)
    _check_usable(data, len(rows), bad, total, params.max_bad)
    unique = {row.id: row for row in reversed(rows)}  # reversed, so that the first of equal rows wins
    if len(unique) == 1 and len(rows) > 1:
        raise DataError(f"{data}: all {len(rows)} usable rows are the same conversation; check how the file was made")
    items = Items(tasks)
    leaks = {row.id: hit for row in unique.values() if (hit := items.match(row.asked))}
    clean = [row for row in unique.values() if row.id not in leaks]
    kept = sorted(clean, key=lambda row: _rank(row.id))[: params.max_rows]
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in sorted(kept, key=lambda row: row.id):
        splits[_split(row.id, params)].append(row)
    if not splits["train"]:
        raise DataError(
            f"{data}: no row is left to train on ({len(unique)} distinct, {len(leaks)} found in {tasks}); add rows"
        )
    report = {
        "format": 1,
        "files": files,
        "rows": total,
        "bad": {
            "count": len(bad),
            "reasons": dict(Counter(reason for _, reason in bad)),
            "rows": [{"source": source, "reason": reason} for source, reason in bad],
        },
        "duplicates": len(rows) - len(unique),
        "contaminated": {
            "items": items.count,
            "count": len(leaks),
            "rows": [
                {"source": unique[key].source, "id": key, "item": item, "rule": rule}
                for key, (item, rule) in sorted(leaks.items())
            ],
        },
        "left_out_by_max_rows": len(clean) - len(kept),
        "splits": {name: len(part) for name, part in splits.items()},
        "characters": {name: _lengths(part) for name, part in splits.items() if part},
        "digest": bytes_digest(canonical_json({name: [row.id for row in part] for name, part in splits.items()})),
    }
    with new_folder(out) as folder:
        for name, part in splits.items():
            _write_parquet(folder / f"{name}.parquet", part)
        write_json_atomically(folder / "data-report.json", report)
    counts = f"{len(bad)} bad, {len(rows) - len(unique)} duplicate, {len(leaks)} contaminated"
    sizes = ", ".join(f"{name} {len(part)}" for name, part in splits.items())
    print(f"prepare: {total} rows, {counts}; {sizes}", file=sys.stderr)


def _read(data: Path) -> tuple[list[Row], list[dict[str, Any]], list[tuple[str, str]]]:
    """The usable rows, the counts of each file, and (source, reason) of every bad row."""
    rows: list[Row] = []
    files: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    for path in data_files(data):
        shapes: Counter[str] = Counter()
        before = len(bad)
        for raw in read_rows(path):
            source = f"{path.name}:{raw.number}"
            try:
                if raw.problem:
                    raise BadRow(raw.problem)
                shape, messages = conversation(raw.value)
            except BadRow as reason:
                bad.append((source, str(reason)))
                continue
            shapes[shape] += 1
            rows.append(Row(hashlib.sha256(canonical_json(messages)).hexdigest(), messages, source))
        files.append({"file": path.name, "usable": shapes.total(), "bad": len(bad) - before, "shapes": dict(shapes)})
        print(f"prepare: read {path.name}, {shapes.total()} usable rows, {len(bad) - before} bad", file=sys.stderr)
    return rows, files, bad


def _check_usable(data: Path, usable: int, bad: list[tuple[str, str]], total: int, max_bad: float) -> None:
    if total == 0:
        raise DataError(f"{data}: holds no rows; add at least one conversation")
    first = "; ".join(f"{source} {reason}" for source, reason in bad[:3]) + ("; ..." if len(bad) > 3 else "")
    if usable == 0:
        raise DataError(f"{data}: none of {total} rows is usable: {first}")
    if len(bad) > max_bad * total:
        raise DataError(
            f"{data}: {len(bad)} of {total} rows ({len(bad) / total:.1%}) are not usable, prepare.max_bad allows "
            f"{max_bad:.1%}: {first}; correct them or raise prepare.max_bad"
        )


def _rank(key: str) -> str:
    """The order in which max_rows keeps rows. It differs from that of the ids, which would keep whole splits."""
    return hashlib.sha256(f"max_rows {key}".encode()).hexdigest()


def _split(key: str, params: Prepare) -> str:
    """The split of an id: its hash as a fraction from 0 to 1, in the range of shares of that split."""
    place = int(key[:13], 16) / 16**13  # 52 bits, exact in a float
    for name, share in (("test", params.test), ("dev", params.dev), ("valid", params.valid)):
        if place < share:
            return name
        place -= share
    return "train"


def _lengths(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Minimum, median, 95th percentile and maximum of prompt and reply, in characters."""
    return {"prompt": _spread(len(row.prompt) for row in rows), "reply": _spread(len(row.reply) for row in rows)}


def _spread(values: Iterable[int]) -> dict[str, int]:
    import numpy as np

    low, median, high, top = np.percentile(list(values), [0, 50, 95, 100], method="nearest")
    return {"min": int(low), "median": int(median), "p95": int(high), "max": int(top)}


def _write_parquet(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = {
        "id": pa.array([row.id for row in rows], pa.string()),
        "messages": pa.array([row.messages for row in rows], pa.list_(message)),
        "prompt": pa.array([row.prompt for row in rows], pa.string()),
        "reply": pa.array([row.reply for row in rows], pa.string()),
        "source": pa.array([row.source for row in rows], pa.string()),
    }
    pq.write_table(pa.table(columns), path)
