"""Compares two versions of the data: rows, splits, replies, and the reasons for dropped rows."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shadowft_core.errors import DataError
from shadowft_core.prepare.conversations import read_conversations
from shadowft_core.prepare.sample import read_report
from shadowft_core.prepare.table import SPLITS, fold, id_of, prompt_of
from shadowft_core.prepare.turns import BadRow

EXAMPLES = 10  # of moved rows, and of changed replies
UNSPLIT = "rows"  # in place of a split, for data files


@dataclass
class Snapshot:
    """The rows of one version: split and source by id, ids by the digest of their question."""

    splits: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    questions: defaultdict[bytes, set[str]] = field(default_factory=lambda: defaultdict(set))
    dropped: Mapping[str, int] = field(default_factory=dict)

    def add(self, row: str, split: str, source: str, prompt: str) -> bool:
        """Add a row by its id. Returns False for an id that was added before."""
        if row in self.splits:
            return False
        self.splits[row], self.sources[row] = split, source
        self.questions[sha256(fold(prompt).encode()).digest()].add(row)
        return True


def compare(first: Path, second: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """Compare two folders made by `prepare`, or two data files or folders of them.

    `columns` maps the fields of data files, as `prepare.columns` does. Rows are equal if their messages, tools,
    images and rejected replies are. In the result, `splits` counts the rows added to, removed from and kept in each
    split, and `moved` those in another split. `changed` counts the questions of both versions that lost a row and
    gained another.
    Raises DataError if one of the versions cannot be read, or only one of them is prepared.
    """
    for one, other in ((first, second), (second, first)):
        if one.exists() and not _is_prepared(one) and _is_prepared(other):
            raise DataError(
                f"{one}: expected a folder made by `shadowft prepare`, as {other} is, found data; prepare it, or "
                "compare it with data files"
            )
    old, new = _snapshot(first, columns), _snapshot(second, columns)
    both = old.splits.keys() & new.splits.keys()
    moved = [row for row in both if old.splits[row] != new.splits[row]]
    names = [name for name in (*SPLITS, "replay", UNSPLIT) if name in {*old.splits.values(), *new.splits.values()}]
    before, after, kept = (
        Counter(old.splits.values()), Counter(new.splits.values()),
        Counter(old.splits[row] for row in both if old.splits[row] == new.splits[row]),
    )  # fmt: skip
    added = Counter(new.splits[row] for row in new.splits.keys() - both)
    removed = Counter(old.splits[row] for row in old.splits.keys() - both)
    changed = [
        {"first": min(old.sources[row] for row in gone), "second": min(new.sources[row] for row in come)}
        for question, ids in old.questions.items()
        if (gone := ids - new.splits.keys()) and (come := new.questions.get(question, set()) - old.splits.keys())
    ]
    reasons = sorted({*old.dropped, *new.dropped})
    return {
        "first": str(first),
        "second": str(second),
        "equal": old.splits == new.splits,
        "splits": {
            name: {
                "before": before[name], "after": after[name],
                "added": added[name], "removed": removed[name], "kept": kept[name],
            }
            for name in names
        },
        "moved": {
            "rows": len(moved),
            "ways": dict(Counter(f"{old.splits[row]} to {new.splits[row]}" for row in moved).most_common()),
            "examples": sorted(
                ({"source": new.sources[row], "from": old.splits[row], "to": new.splits[row]} for row in moved),
                key=lambda row: row["source"],
            )[:EXAMPLES],
        },
        "changed": {"questions": len(changed), "examples": sorted(changed, key=lambda pair: pair["second"])[:EXAMPLES]},
        "dropped": {
            reason: {"before": old.dropped.get(reason, 0), "after": new.dropped.get(reason, 0)} for reason in reasons
        },
    }  # fmt: skip


def _is_prepared(place: Path) -> bool:
    return (place / "data-report.json").is_file()


def _snapshot(place: Path, columns: Mapping[str, str]) -> Snapshot:
    if _is_prepared(place):
        found = Snapshot(dropped=read_report(place)["rows_dropped"])
        for name in (*SPLITS, "replay"):
            for row in _prepared(place / f"{name}.parquet"):
                found.add(row["id"], name, row["source"], row["prompt"])
        return found
    found, dropped = Snapshot(), Counter[str]()
    for source, read in read_conversations(place, columns):
        if isinstance(read, BadRow):
            dropped[str(read)] += 1
        else:
            dropped["duplicate"] += not found.add(id_of(read).hex(), UNSPLIT, source, prompt_of(read.messages))
    found.dropped = +dropped
    return found


def _prepared(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():  # only `prepare.replay` writes replay.parquet
        return
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["id", "prompt", "source"]):
            yield from batch.to_pylist()
