"""The examples of docs/data.md are read as the page says."""

import json
import re
from pathlib import Path

import pytest

from shadowft_core.prepare.shapes import conversation_of
from shadowft_core.prepare.turns import BadRow

PAGE = (Path(__file__).parents[1] / "docs/data.md").read_text("utf-8")
SHAPES = PAGE.split("\n## Shapes\n")[1].split("\n## ")[0]
EXAMPLES = [found for found in re.findall(r"`(\{.*?\})`", SHAPES) if found.startswith('{"')]
REPLIES = {
    "hi": "hello", "Add.\n1 2": "3", "What is 1 + 2?": "3", "Which?\nA. x\nB. y": "B", "q": "good",
    "Name a colour.": "Red",
}  # fmt: skip


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_of_a_shape_is_read(example: str) -> None:
    messages = conversation_of(json.loads(example), {}).messages
    (question,) = [one["content"] for one in messages if one["role"] == "user"]
    assert messages[-1] == {"role": "assistant", "content": REPLIES[question]}


def test_every_shape_has_an_example() -> None:
    rows = [line for line in SHAPES.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 7
    assert all(re.search(r'`\{"', row) for row in rows)
    labelled = json.loads(EXAMPLES[-1])
    with pytest.raises(BadRow, match="marked as undesired"):
        conversation_of(labelled | {"label": False}, {})
