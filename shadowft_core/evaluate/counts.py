"""Prints the counts beside a score, and applies `evaluate.limits` to them."""

import math
from collections.abc import Sequence
from dataclasses import replace

from shadowft_core.errors import EvaluationError, say
from shadowft_core.evaluate.heldout import PICTURED
from shadowft_core.evaluate.items import Item, TaskScore
from shadowft_core.evaluate.questions import Questions
from shadowft_core.params import Limits

GAP = 0.1  # of the items, between two readings of the same answers; more is flagged
READINGS = ("strict", "lenient")
DOUBTS = {
    "cut": ("were cut at the token limit", "raise max_gen_toks of the task or evaluate.generation.max_tokens"),
    "empty": ("are empty", "check the chat template and the stop texts of the task"),
    "unparsed": (
        "hold nothing that the task's filter finds",
        "show examples of the form (num_fewshot), or name another filter or metric in evaluate.metrics",
    ),
    "unstopped": ("have no known end", "use an engine that reports it (a server: finish_reason)"),
}
"""kinds of doubtful answers, as in `evaluate.limits`: what they are, and the remedy"""


def told(label: str, found: TaskScore, limits: Limits, *, refuse: bool) -> TaskScore:
    """Print the counts of an arm that are not 0, and what is flagged; returns the score with its flags.

    Raises EvaluationError instead if it is the Instruct (`refuse`) and more answers are in doubt than `limits` allow.
    """
    counts, n = found.counts(found.items), len(found.items)
    if shown := ", ".join(f"{count} {kind}" for kind, count in counts.items() if count):
        say(f"{label}: of {n} items {shown}")
    differing = gaps(found.metric, found.items)
    for name, gap in differing.items():
        say(
            f"warning: {label}: {name} differs from {found.metric} by {gap:+.0%} of the items: the format may be at "
            "fault, not the skill"
        )
    over = {kind: share for kind, share in limits.model_dump().items() if counts.get(kind, 0) / n > share}
    said = [
        f"{counts[kind]} of {n} answers {DOUBTS[kind][0]}, evaluate.limits.{kind} allows {share:.0%}: "
        f"{DOUBTS[kind][1]}{_readings(found) if kind == 'unparsed' else ''}"
        for kind, share in over.items()
    ]
    if said and refuse:
        raise EvaluationError(f"{label}: {'; '.join(said)}; or raise the limit")
    for one in said:
        say(f"warning: {label}: {one}")
    return replace(found, flags=(*over, *(["format"] if differing else [])))


def _readings(found: TaskScore) -> str:
    """The metric by other filters, which may find what the deciding one does not."""
    names = sorted({name for item in found.items for name in item.others if "/" in name})
    return f" ({', '.join(names):.200})" if names else ""


def gaps(metric: str, items: Sequence[Item]) -> dict[str, float]:
    """By how much stricter and more lenient readings of the same answers differ from the score, where it is over GAP.

    These are `strict` and `lenient` of a scorer, and the metric by other filters, such as flexible-extract of gsm8k.
    """
    found = {}
    for name in sorted({name for item in items for name in item.others}):
        reading = name in READINGS if metric in READINGS else name.rpartition("/")[2] == metric
        values = [item.others[name] - item.score for item in items if name in item.others]
        if reading and len(values) == len(items) and abs(gap := math.fsum(values) / len(values)) > GAP:
            found[name] = gap
    return found


def tell_left_out(questions: Questions, ends_at_delimiter: bool) -> None:
    """Print what a task does that its file does not say: rows left out, examples replaced, and stop texts."""
    lines = []
    if ends_at_delimiter:
        stop = questions.task.config.generation_kwargs["until"]
        lines.append(
            f"generation_kwargs names no `until`, so answers end at {stop}, as in the harness; `until: []` has"
        )
        lines[-1] += " them end by themselves"
    for reason, rows in questions.left_out.items():
        if reason != PICTURED:
            some = f"{', '.join(rows[:3])}{' ...' if len(rows) > 3 else ''}"
            lines.append(f"left out of every arm, {len(rows)} rows: {reason} ({some})")
    if questions.replaced:
        lines.append(f"{questions.replaced} items were among their own few-shot examples, which were replaced")
    for line in lines:
        say(f"task {questions.name}: {line}")
