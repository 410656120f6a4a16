"""Measures rows in tokens, and marks the text that is learned, for a person to look at before training."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.rendering.pairs import render_pair
from shadowft_core.rendering.rows import Row, prepared_rows
from shadowft_core.rendering.samples import IGNORED, Renderer, RowError
from shadowft_core.rendering.template import Message

SAMPLE = 10_000  # rows of each split that are measured, chosen by hash
SHOWN = 5  # sources of refused rows for each reason


def split_lengths(folder: Path, splits: Iterable[str], renderer: Renderer, max_length: int) -> dict[str, Any]:
    """`token_lengths` of each split in a folder made by `prepare`, for at most SAMPLE rows. Raises DataError."""
    return {
        name: token_lengths(prepared_rows(folder / f"{name}.parquet", SAMPLE), renderer, max_length) for name in splits
    }


def token_lengths(rows: Iterable[Row], renderer: Renderer, max_length: int) -> dict[str, Any]:
    """Lengths of rows in tokens. The length of a row is that of the longest sequence that `train` makes of it.

    Returns `rows`, and min, median, p95 and max of their lengths (None without rows); `max_length`, `too_long` (rows
    that are longer) and `too_long_share`; and `refused`, the refused rows by reason, with some sources.
    """
    import numpy as np

    lengths: list[int] = []
    refused, sources = Counter[str](), dict[str, list[str]]()
    for messages, tools, source, rejected in rows:
        try:
            if rejected:
                lengths.append(len(render_pair(messages, rejected, tools, renderer)))
            else:
                lengths.append(max(len(sample.input_ids) for sample in renderer.samples(messages, tools)))
        except RowError as reason:
            refused[str(reason)] += 1
            named = sources.setdefault(str(reason), [])
            named += [source] if len(named) < SHOWN else []
    levels = np.percentile(lengths, [0, 50, 95, 100], method="nearest").tolist() if lengths else [None] * 4
    too_long = sum(length > max_length for length in lengths)
    return {
        "rows": len(lengths) + refused.total(),
        **dict(zip(("min", "median", "p95", "max"), levels, strict=True)),
        "max_length": max_length,
        "too_long": too_long,
        "too_long_share": too_long / len(lengths) if lengths else 0.0,
        "refused": {reason: {"rows": n, "sources": sources[reason]} for reason, n in refused.most_common()},
    }


def learned_parts(
    messages: Sequence[Message], tools: Sequence[Any] | None, renderer: Renderer, rejected: Message | None = None
) -> list[list[dict[str, Any]]]:
    """The sequences of one conversation, each a list of parts {text, learned}. Raises RowError.

    With a rejected reply, there are two: one ends with the chosen reply, the other with the rejected one.
    """
    if rejected:
        pair = render_pair(messages, rejected, tools, renderer)
        prompt = {"text": _text(renderer.tokenizer, pair.prompt), "learned": False}
        return [
            [prompt, {"text": _text(renderer.tokenizer, ids), "learned": True}] for ids in (pair.chosen, pair.rejected)
        ]
    found = []
    for sample in renderer.samples(messages, tools):
        parts: list[tuple[bool, list[int]]] = []
        for token, label in zip(sample.input_ids, sample.labels, strict=True):
            learned = label != IGNORED
            if not parts or parts[-1][0] != learned:
                parts.append((learned, []))
            parts[-1][1].append(token)
        found.append([{"text": _text(renderer.tokenizer, ids), "learned": learned} for learned, ids in parts])
    return found


def _text(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
