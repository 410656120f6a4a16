"""Turns samples into the page: medians, ratios within a round, goals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.graft import machine
from benchmarks.graft.measure import Sample

Samples = Mapping[tuple[str, str], Sequence[Sample]]
CACHES = ("warm", "cold")
GOAL_SIZE = "1.1B"
# Ours, the peer, `faster` (peer / ours) or `of` (ours / peer), the goal, and the state of the page cache.
BOTH = ("one-pass", "extract+graft")
GRAFT = ("graft", "graft-bfloat16")
RATIOS = [
    *((ours, "mergekit", "faster", 12.0, ("warm",)) for ours in (*BOTH, *GRAFT)),
    *((ours, "state-dicts", "faster", 5.0, ("warm",)) for ours in (*BOTH, *GRAFT)),
    *((ours, "cp", "of", 3.5, ("warm",)) for ours in (*BOTH, *GRAFT)),
    *((ours, "cp-durable", "of", None, ("warm",)) for ours in (*BOTH, *GRAFT)),
    *((ours, "read-3-write-1", "of", 1.2, ("cold",)) for ours in (*BOTH, "graft")),
    ("extract", "graft", "of", 1.0, CACHES),
    ("extract-bfloat16", "graft-bfloat16", "of", 1.0, ("warm",)),
    ("one-pass", "undigested", "of", 1.25, ("warm",)),
    ("first", "undigested", "of", 1.25, ("warm",)),
    ("lora", "peft", "faster", 5.0, ("warm",)),
    ("sigma", "sigma-torch", "faster", 7.0, ("warm",)),
]
COLD = {
    name for ours, peer, _, _, caches in RATIOS for name in (ours, peer) if "cold" in caches
}  # the cases that run cold
PEAKS = dict.fromkeys(("extract", "extract-bfloat16", *GRAFT, *BOTH), 100) | {"lora": 300, "sigma": None}  # MB


@dataclass(frozen=True)
class Ratio:
    """The median of per-round ratios of wall time: peer / ours, or ours / yardstick."""

    ours: str
    peer: str
    kind: str
    cache: str
    median: float
    lowest: float
    highest: float
    goal: float | None

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.median >= self.goal if self.kind == "faster" else self.median <= self.goal


def ratios(samples: Samples, params: str) -> list[Ratio]:
    """All comparisons whose two cases were run, round by round; goals hold only for the size they were set at."""
    found = []
    for ours, peer, kind, goal, caches in RATIOS:
        for cache in caches:
            if (ours, cache) in samples and (peer, cache) in samples:
                pairs = zip(samples[ours, cache], samples[peer, cache], strict=True)
                each = [p.wall / o.wall if kind == "faster" else o.wall / p.wall for o, p in pairs]
                aim = goal if params == GOAL_SIZE else None
                found.append(Ratio(ours, peer, kind, cache, median(each), min(each), max(each), aim))
    return found


def as_json(samples: Samples, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All samples."""
    runs: dict[str, dict[str, Any]] = {}
    for (case, cache), found in samples.items():
        runs.setdefault(case, {})[cache] = [asdict(sample) for sample in found]
    return {
        **facts,
        "samples": runs,
        "ratios": [asdict(one) | {"met": one.met} for one in ratios(samples, facts["params"])],
    }


def as_markdown(samples: Samples, facts: Mapping[str, Any]) -> str:
    """The page for people."""
    about: dict[str, str] = facts["cases"]
    lines = [
        f"# Graft: {facts['params']} parameters, {facts['rounds']} rounds",
        "",
        "Whole processes in random order; wall seconds are median (lowest..highest), the rest are medians.",
        "MB and GB are powers of ten; peak is the resident memory of the largest process. What each case is: below.",
        "",
        "| case | cache | wall s | CPU s | peak MB | GB read from disk |",
        "|---|---|---|---|---|---|",
    ]
    for case in about:
        for cache in CACHES:
            if found := samples.get((case, cache)):
                walls = [one.wall for one in found]
                middle = [median(getattr(one, field) for one in found) for field in ("cpu", "peak", "read")]
                lines.append(
                    f"| {case} | {cache} | {median(walls):.2f} ({min(walls):.2f}..{max(walls):.2f}) | {middle[0]:.2f} "
                    f"| {middle[1] / 1e6:.0f} | {middle[2] / 1e9:.2f} |"
                )
    lines += ["", *(f"- `{case}`: {text}" for case, text in about.items())]
    lines += [f"- `{case}` was left out: {text}" for case, text in facts["left_out"].items()]
    lines += [
        "",
        "## Against peers and goals",
        "",
        "Ratios of wall time within a round: median (lowest..highest). "
        f"Goals of speed are set for {GOAL_SIZE} parameters; those of memory hold for every size.",
        "",
        "| ours | measure | cache | value | goal | met |",
        "|---|---|---|---|---|---|",
    ]
    for one in ratios(samples, facts["params"]):
        measure = f"times faster than {one.peer}" if one.kind == "faster" else f"times the seconds of {one.peer}"
        sign = "at least" if one.kind == "faster" else "at most"
        goal = "-" if one.goal is None else f"{sign} {one.goal:g}"
        lines.append(
            f"| {one.ours} | {measure} | {one.cache} | {one.median:.2f} ({one.lowest:.2f}..{one.highest:.2f}) "
            f"| {goal} | {_word(one.met)} |"
        )
    for case, limit in PEAKS.items():
        peaks = [one.peak for cache in CACHES for one in samples.get((case, cache), ())]
        if not peaks:
            continue
        peak = max(peaks) / 1e6
        goal = "-" if limit is None else f"at most {limit}"
        met = _word(None if limit is None else peak <= limit)
        lines.append(f"| {case} | highest peak, MB | all | {peak:.0f} | {goal} | {met} |")
    lines += ["", "## Checks", "", *(f"- {text}" for text in facts["checks"])]
    lines += machine.section(facts["machine"])
    lines += ["", "## Commands", "", "```", *facts["commands"], "```"]
    return "\n".join(lines) + "\n"


def _word(met: bool | None) -> str:
    return "-" if met is None else "yes" if met else "**no**"
