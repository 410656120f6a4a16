"""What a person is told of the counts beside a score, and the limit of cut answers."""

import sys

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.heldout import PICTURED
from shadowft_core.evaluate.items import TaskScore
from shadowft_core.evaluate.questions import Questions


def tell(label: str, found: TaskScore, max_cut: float, *, refuse: bool) -> None:
    """Print the counts of an arm that are not 0; raise EvaluationError if it is the Instruct and has a flag."""
    counts, n = found.counts(found.items), len(found.items)
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    if shown:
        print(f"{label}: of {n} items {shown}", file=sys.stderr, flush=True)
    if found.flags:
        said = (
            f"{label}: {counts['cut']} of {n} answers were cut at the token limit, evaluate.max_cut allows "
            f"{max_cut:.0%}; raise max_gen_toks of the task, evaluate.generation.max_tokens or max_cut"
        )
        if refuse:
            raise EvaluationError(said)
        print(f"warning: {said}", file=sys.stderr, flush=True)


def tell_left_out(questions: Questions) -> None:
    lines = []
    for reason, rows in questions.left_out.items():
        if reason != PICTURED:
            some = f"{', '.join(rows[:3])}{' ...' if len(rows) > 3 else ''}"
            lines.append(f"left out of every arm, {len(rows)} rows: {reason} ({some})")
    if questions.replaced:
        lines.append(f"{questions.replaced} items were among their own few-shot examples; they are shown another one")
    for line in lines:
        print(f"task {questions.name}: {line}", file=sys.stderr, flush=True)
