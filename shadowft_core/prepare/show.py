"""Collects what a person looks at before training: the size of each split, suspect rows, samples."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from shadowft_core.prepare.near import sequences
from shadowft_core.prepare.overlap import item_texts
from shadowft_core.prepare.sample import read_report, sampled_rows
from shadowft_core.prepare.table import SPLITS
from shadowft_core.prepare.tracked import require_intact

SAMPLES = 10  # rows shown
NEAREST = 10  # rows shown with the test items most similar to them
TEXT = 200  # characters of a row shown


def show(folder: Path, tasks: Path | None = None) -> dict[str, Any]:
    """Rows and lengths in characters of each split, suspect rows, and ten training rows chosen by hash.

    With `tasks`, `nearest` has the ten training rows most similar to a test item in that folder, else it is None.
    Raises DataError if `prepare` did not make the folder, if it no longer has its recorded digest, or if task files
    cannot be read.
    """
    require_intact(folder)
    report = read_report(folder)
    lengths = report.get("characters", {})
    samples = list(sampled_rows(folder / "train.parquet", SAMPLES))
    splits = {name: {"rows": report["splits"][name], "characters": lengths.get(name)} for name in SPLITS}
    if added := report.get("replay"):
        splits["replay"] = {"rows": added["rows_used"], "characters": added["characters"]}
    return {
        "folder": str(folder),
        "digest": report["digest"],
        "rows_read": report["rows_read"],
        "rows_used": report["rows_used"],
        "rows_dropped": report["rows_dropped"],
        "preferences": report.get("preferences", 0),
        "splits": splits,
        "suspect": report.get("suspect", {}),
        "nearest": None if tasks is None else nearest(folder / "train.parquet", tasks),
        "samples": samples,
    }


def nearest(path: Path, tasks: Path) -> list[dict[str, Any]]:
    """The ten rows whose question is most similar to a text of a test item, the most similar first.

    The similarity is that of `prepare.near`: Jaccard similarity of the sets of three-word sequences.
    """
    items: list[tuple[str, int]] = []
    index: defaultdict[str, list[int]] = defaultdict(list)
    for source, text in item_texts(tasks):
        if found := sequences(text):
            for one in found:
                index[one].append(len(items))
            items.append((source, len(found)))
    best: list[tuple[float, str, str, str]] = []
    with pq.ParquetFile(path, pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["prompt", "source"]):
            for row in batch.to_pylist():
                found = sequences(row["prompt"])
                shared = Counter(item for one in found for item in index.get(one, ()))
                if shared:
                    value, at = max((n / (len(found) + items[at][1] - n), -at) for at, n in shared.items())
                    best.append((value, row["source"], items[-at][0], row["prompt"][:TEXT]))
            best = sorted(best, key=lambda one: (-one[0], one[1]))[:NEAREST]
    return [{"source": row, "item": item, "similarity": value, "text": text} for value, row, item, text in best]
