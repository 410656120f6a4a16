"""What a person looks at before training: the size of each split, suspect rows, samples."""

from pathlib import Path
from typing import Any

from shadowft_core.prepare.sample import read_report, sampled_rows
from shadowft_core.prepare.table import SPLITS
from shadowft_core.prepare.tracked import require_intact

SAMPLES = 10  # rows shown


def show(folder: Path) -> dict[str, Any]:
    """Splits with their rows and lengths in characters, suspect rows, and ten training rows chosen by hash.

    Raises DataError for a folder that `prepare` did not make, or that no longer has its recorded digest.
    """
    require_intact(folder)
    report = read_report(folder)
    lengths = report.get("characters", {})
    samples = [
        {"source": source, "messages": messages, "tools": tools}
        for messages, tools, source in sampled_rows(folder / "train.parquet", SAMPLES)
    ]
    return {
        "folder": str(folder),
        "digest": report["digest"],
        "rows_read": report["rows_read"],
        "rows_used": report["rows_used"],
        "rows_dropped": report["rows_dropped"],
        "splits": {name: {"rows": report["splits"][name], "characters": lengths.get(name)} for name in SPLITS},
        "suspect": report.get("suspect", {}),
        "samples": samples,
    }
