"""What a person is told of the counts beside a score, and the limit of cut answers."""

import math
import sys
from collections.abc import Sequence

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.heldout import PICTURED
from shadowft_core.evaluate.items import Item, TaskScore
from shadowft_core.evaluate.questions import Questions

GAP = 0.1  # of the items, between two readings of the same answers; more is flagged
READINGS = ("strict", "lenient")


def tell(label: str, found: TaskScore, max_cut: float, *, refuse: bool) -> None:
    """Print the counts of an arm that are not 0, and a warning for each flag.

    With `refuse`, which is for the Instruct, raises EvaluationError for the flag `cut`."""
    counts, n = found.counts(found.items), len(found.items)
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if shown:
        print(f"{label}: of {n} items {shown}", file=sys.stderr, flush=True)
    for name, gap in gaps(found.metric, found.items).items():
        print(
            f"warning: {label}: {name} differs from {found.metric} by {gap:+.0%} of the items: the format may be at "
            "fault, not the skill",
            file=sys.stderr,
            flush=True,
        )
    if "cut" in found.flags:
        said = (
            f"{label}: {counts['cut']} of {n} answers were cut at the token limit, evaluate.max_cut allows "
            f"{max_cut:.0%}; raise max_gen_toks of the task, evaluate.generation.max_tokens or max_cut"
        )
        if refuse:
            raise EvaluationError(said)
        print(f"warning: {said}", file=sys.stderr, flush=True)


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
        print(f"task {questions.name}: {line}", file=sys.stderr, flush=True)
