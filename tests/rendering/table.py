"""Writes docs/templates.md: the learned text under each stock template.

python -m tests.rendering.table    # write the page
"""

from pathlib import Path
from typing import Any

from shadowft_core.params import Render
from shadowft_core.rendering import IGNORED, Renderer, RowError, Sample
from tests.rendering.stock import stock_templates, tokenizer_for

PAGE = Path(__file__).resolve().parents[2] / "docs/templates.md"
USER = [{"role": "user", "content": f"q{n}"} for n in (1, 2)]
REPLY = [{"role": "assistant", "content": f"a{n}"} for n in (1, 2)]
THOUGHT = [reply | {"reasoning_content": f"t{n}"} for n, reply in enumerate(REPLY, 1)]
CONVERSATIONS = {
    "one turn": [USER[0], REPLY[0]],
    "system": [{"role": "system", "content": "s"}, USER[0], REPLY[0]],
    "two turns": [USER[0], REPLY[0], USER[1], REPLY[1]],
    "a thought": [USER[0], THOUGHT[0]],
    "two thoughts": [USER[0], THOUGHT[0], USER[1], THOUGHT[1]],
}
HEAD = """# What is learned under each chat template

`python -m tests.rendering.table` writes this page from the templates that TRL has; a test compares it with the code.
Each line shows the learned text of a short conversation with the questions `q1`, `q2`, the replies `a1`, `a2` and the
thoughts `t1`, `t2` (`reasoning_content`). The token that ends a reply is learned too. `|` separates the replies of one
sequence. `/` separates sequences: if a template drops an earlier thought, each reply is learned in a separate sequence,
after the prompt that inference would send. `⏎` is a line break. The tokenizer is byte-level and has the control tokens
of the template. `shadowft data show DIR --tokenizer MODEL` shows the same for your model and your rows.

"""


def pieces(sample: Sample) -> list[list[int]]:
    """The runs of ids that are learned."""
    found: list[list[int]] = []
    before = IGNORED
    for label in sample.labels:
        if label != IGNORED:
            found = [*found[:-1], [*found[-1], label]] if before != IGNORED else [*found, [label]]
        before = label
    return found


def learned(renderer: Renderer, turns: list[dict[str, Any]]) -> str:
    """The learned text of one conversation, in the notation of the page."""
    try:
        samples = renderer.samples(turns)
    except RowError as error:
        return f"refused: {error}"
    texts = (" | ".join(renderer.tokenizer.decode(piece) for piece in pieces(sample)) for sample in samples)
    return " / ".join(texts).replace("\n", "⏎")


def page() -> str:
    """The whole page."""
    blocks = []
    for name, template in stock_templates().items():
        renderer = Renderer(*tokenizer_for(template), Render())
        width = max(map(len, CONVERSATIONS))
        rows = "".join(f"    {label:<{width}}  {learned(renderer, turns)}\n" for label, turns in CONVERSATIONS.items())
        blocks.append(f"## {name}\n\n{rows}")
    return HEAD + "\n".join(blocks)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
