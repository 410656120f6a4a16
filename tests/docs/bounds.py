"""docs/limits.md, from the names, values and sentences of shadowft_core/limits.py."""

import ast
from itertools import pairwise
from pathlib import Path

from shadowft_core import limits

INTRO = """# Limits

Written from shadowft_core/limits.py by `python -m tests.docs.generate`.

Files and answers that somebody else wrote are read within limits on size, number, nesting and time. Each limit is far
above every honest use that we know of. Whatever exceeds one is refused in one line, with the limit. Mi is 1,048,576.

The limits are fixed: no setting raises them. If one stops an honest file, open an issue and attach the file; if it is
private, report it as [SECURITY.md](../SECURITY.md) says.

`make test-fuzz` tries the readers with damaged files; [security.md](security.md) says who may give what. The limits on
programs that a model wrote are in [sandbox.md](sandbox.md).
"""


def page() -> str:
    """The page: a table for each group of limits."""
    source = Path(limits.__file__).read_text(encoding="utf-8")
    lines, body = source.splitlines(), ast.parse(source).body
    text, group = [INTRO], ""
    for constant, sentence in pairwise(body):
        if not (isinstance(constant, ast.Assign) and isinstance(sentence, ast.Expr)):
            continue
        before = (line for line in reversed(lines[: constant.lineno]) if line.startswith("# "))
        if (title := next(before).removeprefix("# ")) != group:
            group = title
            text.append(f"\n## {group}\n\n| limit | | name |\n|---:|---|---|\n")
        name = ast.unparse(constant.targets[0])
        text.append(f"| {shown(getattr(limits, name))} | {ast.literal_eval(sentence.value)} | `{name}` |\n")
    return "".join(text)


def shown(value: float) -> str:
    """A number as people read it: whole MiB where it is one, else with separators."""
    if isinstance(value, int) and value >= limits.MIB and value % limits.MIB == 0 and value <= 1024 * limits.MIB:
        return f"{value >> 20:,} Mi"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
