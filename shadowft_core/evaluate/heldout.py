"""The items of the built-in tasks `heldout` and `heldout_dev`, rendered as the training renders rows."""

import sys
from pathlib import Path

from shadowft_core.errors import EvaluationError
from shadowft_core.rendering import Renderer, RowError, prepared_rows


def render_heldout(renderer: Renderer, data: Path, out: Path) -> None:
    """Write test.parquet and dev.parquet with the columns `prompt` and `reply`, one row for each conversation.

    `prompt` is the text that inference sends for the first learned reply, or for the chosen reply of a preference.
    `reply` is the text of the template after it, without the token that ends it. Leaves out rows that training would
    refuse, and rows with images, because the harness scores only text; prints the number of the latter.
    Raises EvaluationError if none of the rows of a split can be rendered, DataError if a split cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    for split in ("test", "dev"):
        file = data / f"{split}.parquet"
        if not file.is_file():
            continue  # a task that needs the file reports it
        found: dict[str, list[str]] = {"prompt": [], "reply": []}
        refused: list[str] = []
        pictured = 0
        for messages, tools, source, rejected in prepared_rows(file):
            if any(one.get("images") for one in messages):
                pictured += 1
                refused.append(f"{source}: it has images, and only text is scored")
                continue
            learned = (at for at, one in enumerate(messages) if one["role"] == "assistant" and one.get("weight") != 0)
            last = len(messages) - 1 if rejected else next(learned)  # of a preference the chosen reply
            try:
                sample = renderer.samples(messages[: last + 1], tools)[-1]
            except RowError as error:
                refused.append(f"{source}: {error}")
                continue
            found["prompt"].append(sample.prompt)
            found["reply"].append(sample.reply)
        if refused and not found["prompt"]:
            raise EvaluationError(f"{file}: none of {len(refused)} rows can be rendered: {refused[0]}")
        if pictured:
            print(
                f"evaluate: {file}: left out {pictured} rows with images, because the harness scores only text",
                file=sys.stderr,
            )
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in found.items()})
        pq.write_table(table, out / file.name)
