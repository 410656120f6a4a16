"""docs/templates.md: what is learned under each stock template.

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
TALKS = {
    "one turn": [USER[0], REPLY[0]],
    "system": [{"role": "system", "content": "s"}, USER[0], REPLY[0]],
    "two turns": [USER[0], REPLY[0], USER[1], REPLY[1]],
    "a thought": [USER[0], THOUGHT[0]],
    "two thoughts": [USER[0], THOUGHT[0], USER[1], THOUGHT[1]],
}
HEAD = """# What is learned under each chat template

Written by `python -m tests.rendering.table` from the templates that TRL carries; a test holds the page to the code.
The rows show what the tokens with a label decode to, for short conversations: questions `q1`, `q2`, replies `a1`,
`a2`, thoughts `t1`, `t2` (`reasoning_content`). The token that ends the reply is learned. `|` separates the replies of
one sequence, `/` separates sequences: where a template drops an earlier thought, each reply is trained in a sequence of
its own, behind the prompt that inference would send. `⏎` is a line break. Each template runs on a byte-level tokenizer
that knows its control tokens. For your model and your rows, `shadowft data show DIR --tokenizer MODEL` shows the same.

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


def learned(renderer: Renderer, talk: list[dict[str, Any]]) -> str:
    """What one conversation teaches, as the page shows it."""
    try:
        samples = renderer.samples(talk)
    except RowError as error:
        return f"refused: {error}"
    texts = (" | ".join(renderer.tokenizer.decode(piece) for piece in pieces(sample)) for sample in samples)
    return " / ".join(texts).replace("\n", "⏎")


def page() -> str:
    """The whole page."""
    blocks = []
    for name, template in stock_templates().items():
        renderer = Renderer(*tokenizer_for(template), Render())
        width = max(map(len, TALKS))
        rows = "".join(f"    {label:<{width}}  {learned(renderer, talk)}\n" for label, talk in TALKS.items())
        blocks.append(f"## {name}\n\n{rows}")
    return HEAD + "\n".join(blocks)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
