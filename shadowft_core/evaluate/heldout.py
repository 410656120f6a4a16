"""The items of the built-in tasks `heldout` and `heldout_dev`, rendered as the training renders rows."""

from pathlib import Path

from shadowft_core.errors import EvaluationError, say
from shadowft_core.evaluate.documents import PLACE
from shadowft_core.evaluate.questions import NO_REPLY
from shadowft_core.files import bytes_digest
from shadowft_core.rendering import Renderer, RowError, prepared_rows

PICTURED = "it has images, and only text is scored"


def render_heldout(renderer: Renderer, data: Path, out: Path) -> dict[str, dict[str, list[str]]]:
    """Write test.parquet and dev.parquet with the columns `prompt`, `reply` and PLACE, a row for each conversation.

    `prompt` is the text that inference sends for the first learned reply, or for the chosen reply of a preference.
    `reply` is the text of the template after it, without the token that ends it. Rows of the same first user turn share
    a cluster, as `prepare` splits rows by it. Leaves out rows that training would refuse, rows with an empty reply, and
    rows with images, because the harness scores only text.

    Returns, for each split, the sources of these rows by reason; prints the number of rows with images.
    Raises EvaluationError if none of the rows of a split can be rendered, DataError if a split cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir()
    left_out: dict[str, dict[str, list[str]]] = {}
    for split in ("test", "dev"):
        file = data / f"{split}.parquet"
        if not file.is_file():
            continue  # a task that needs the file reports it
        found: dict[str, list[str]] = {"prompt": [], "reply": [], PLACE[0]: [], PLACE[1]: []}
        refused = left_out.setdefault(split, {})
        for messages, tools, source, rejected in prepared_rows(file):
            if any(one.get("images") for one in messages):
                refused.setdefault(PICTURED, []).append(source)
                continue
            learned = (at for at, one in enumerate(messages) if one["role"] == "assistant" and one.get("weight") != 0)
            last = len(messages) - 1 if rejected else next(learned)  # of a preference the chosen reply
            try:
                sample = renderer.samples(messages[: last + 1], tools)[-1]
            except RowError as error:
                refused.setdefault(str(error), []).append(source)
                continue
            if not sample.reply.strip():
                refused.setdefault(NO_REPLY, []).append(source)
                continue
            asked = next((one.get("content") for one in messages if one["role"] == "user"), sample.prompt)
            found["prompt"].append(sample.prompt)
            found["reply"].append(sample.reply)
            found[PLACE[0]].append(source)
            found[PLACE[1]].append(bytes_digest(" ".join(str(asked).split()).casefold().encode()))
        if refused and not found["prompt"]:
            reason, sources = next(iter(refused.items()))
            count = sum(map(len, refused.values()))
            raise EvaluationError(f"{file}: none of {count} rows can be rendered: {sources[0]}: {reason}")
        if pictured := refused.get(PICTURED):
            say(f"evaluate: {file}: left out {len(pictured)} rows with images, because the harness scores only text")
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in found.items()})
        pq.write_table(table, out / file.name)
    return left_out
