"""What `shadowft suite list` and `suite show` say of suites."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shadowft_core.files import read_json_object
from shadowft_core.suites.catalogue import Benchmark, Suite, Task, suites
from shadowft_core.suites.items import RECORD


def listed(out: Path) -> list[dict[str, Any]]:
    """Every suite of several benchmarks or of its own name; `here` are the benchmarks that are below `out`."""
    rows = []
    for suite in suites().values():
        if not suite.about:
            continue  # a benchmark that only suites name
        parts = suite.benchmarks
        rows.append(
            {
                "name": suite.name,
                "about": suite.about,
                "benchmarks": [one.name for one in parts],
                "items": sum(one.items or 0 for one in parts),
                "licences": sorted({one.licence for one in parts}),
                "here": [one.name for one in parts if (out / one.name / RECORD).is_file()],
                "extras": sorted({extra for one in parts for extra in one.extras}),
                "without": [line.name for line in suite.lines if not line.benchmark],
            }
        )
    return rows


def shown(suite: Suite, out: Path) -> list[dict[str, Any]]:
    """Each line of a suite, with what was fetched of it below `out`."""
    return [
        {"paper": line.paper, **(_about(line.benchmark, out) if line.benchmark else {"benchmark": None})}
        | {"difference": line.difference}
        for line in suite.lines
    ]


def _about(benchmark: Benchmark, out: Path) -> dict[str, Any]:
    place = out / benchmark.name / RECORD
    record: Mapping[str, Any] = read_json_object(place) if place.is_file() else {}
    tasks = benchmark.tasks()
    first = tasks[0]
    sources = sorted({str(task.config.get("dataset_path")) for task in tasks})
    revisions = record.get("revisions", {})
    return {
        "benchmark": benchmark.name,
        "tasks": benchmark.harness or "of this project",
        "count": len(tasks),
        "shots": benchmark.shots if benchmark.shots is not None else first.config.get("num_fewshot") or 0,
        "metric": _metric(first),
        "parser": benchmark.parser,
        "source": [f"hf:{name}" + (f"@{revisions[name]}" if name in revisions else "") for name in sources],
        "licence": record.get("licence", benchmark.licence),
        "items": benchmark.items,
        "here": sum(about["rows"] for about in record["files"].values() if about["items"]) if record else 0,
        "notes": record.get("notes", []),
        "extras": list(benchmark.extras),
    }


def _metric(task: Task) -> str:
    if scorer := task.config.get("scorer"):
        return f"scorer {scorer}"
    listed = task.config.get("metric_list") or []
    names = [one["metric"] for one in listed]
    filters = [one["name"] for one in task.config.get("filter_list") or []]
    return ", ".join(str(getattr(name, "spec", name)) for name in names) + (
        f" ({', '.join(filters)})" if filters else ""
    )
