"""The result page from samples: medians, rates, ratios within a round, goals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.graft import machine
from benchmarks.graft.measure import Sample

Samples = Mapping[str, Sequence[Sample]]
PEERS = {"publish": ("boto3-up", "aws-up"), "fetch": ("boto3-down", "aws-down")}
RATIOS = [(ours + size, peer) for ours, peers in PEERS.items() for size in ("", "-large") for peer in peers]
FASTER = 1.0  # at least as fast as each peer
PEAK = 300  # MB


def ratios(samples: Samples) -> list[dict[str, Any]]:
    """How many times faster than the peer: wall seconds of the peer over ours, round by round.

    `moving` is the ratio without the start-up of each.
    """
    found = []
    for ours, peer in RATIOS:
        if ours in samples and peer in samples:
            each = [p.wall / o.wall for o, p in zip(samples[ours], samples[peer], strict=True)]
            middle = median(each)
            idle = samples["start"], samples[f"{peer.partition('-')[0]}-start"]
            runs = zip(samples[ours], samples[peer], *idle, strict=True)
            moving = median((p.wall - slow.wall) / (o.wall - start.wall) for o, p, start, slow in runs)
            found.append(
                {
                    "ours": ours,
                    "peer": peer,
                    "median": middle,
                    "lowest": min(each),
                    "highest": max(each),
                    "moving": moving,
                }
                | {"goal": FASTER, "met": middle >= FASTER}
            )
    return found


def as_json(samples: Samples, facts: Mapping[str, Any]) -> dict[str, Any]:
    """All measurements, sample by sample."""
    runs = {case: [asdict(sample) for sample in found] for case, found in samples.items()}
    return {**facts, "samples": runs, "ratios": ratios(samples)}


def as_markdown(samples: Samples, facts: Mapping[str, Any]) -> str:
    """The result page in Markdown."""
    size = facts["bytes"] / 1e9
    lines = [
        f"# Store: a delta of {size:.2f} GB, {facts['rounds']} rounds",
        "",
        "Whole processes in random order against SeaweedFS on loopback, on the same cores. Wall seconds are median",
        "(lowest..highest), the rest are medians. GB and MB are powers of ten; CPU is that of the client alone.",
        "",
        "| case | wall s | GB/s | CPU s | peak MB |",
        "|---|---|---|---|---|",
    ]
    for case in facts["cases"]:
        if found := samples.get(case):
            walls = [one.wall for one in found]
            rate = "" if case.endswith("start") else f"{size / median(walls):.3f}"
            lines.append(
                f"| {case} | {median(walls):.2f} ({min(walls):.2f}..{max(walls):.2f}) | {rate} "
                f"| {median(one.cpu for one in found):.2f} | {median(one.peak for one in found) / 1e6:.0f} |"
            )
    lines += ["", *(f"- `{case}`: {about}" for case, about in facts["cases"].items())]
    lines += [f"- {text}" for text in facts["left_out"]]
    lines += ["", "## Against peers", ""]
    lines += ["| ours | times faster than | value | goal | met | without the start-ups |", "|---|---|---|---|---|---|"]
    for one in ratios(samples):
        lines.append(
            f"| {one['ours']} | {one['peer']} | {one['median']:.2f} ({one['lowest']:.2f}..{one['highest']:.2f}) "
            f"| at least {one['goal']:g} | {_word(one['met'])} | {one['moving']:.2f} |"
        )
    lines += ["", "## Memory", "", "A sparse delta of which no two chunks are equal.", ""]
    lines += ["| GB | publish, peak MB | fetch, peak MB | goal | met |", "|---|---|---|---|---|"]
    for row in facts["memory"]:
        peaks = row["publish"] / 1e6, row["fetch"] / 1e6
        met = _word(max(peaks) <= PEAK)
        lines.append(f"| {row['bytes'] / 1e9:.2f} | {peaks[0]:.0f} | {peaks[1]:.0f} | at most {PEAK} | {met} |")
    again = facts["republish"]
    lines += [
        "",
        "## One changed tensor",
        "",
        f"Publishing the delta again with one of its {again['tensors']} tensors changed: {again['sent']} of "
        f"{again['total']} bytes sent, {again['wall']:.2f} s; the tensor has {again['tensor']} bytes, delta.json "
        f"{again['certificate']}.",
    ]
    lines += ["", "## Checks", "", *(f"- {text}" for text in facts["checks"])]
    lines += machine.section(facts["machine"])
    return "\n".join(lines) + "\n"


def _word(met: bool) -> str:
    return "yes" if met else "**no**"
