"""Decodes the first sequences for people, cut into learned and other pieces."""

from itertools import pairwise
from typing import Any

import numpy as np

from shadowft_core.rendering import IGNORED
from shadowft_core.train.encode import Encoded

SAMPLES = 10
SHOWN = 500  # the last tokens of a sequence that are written


def decoded_samples(rows: Encoded, tokenizer: Any) -> list[dict[str, Any]]:
    """The first SAMPLES sequences: `{"left_out": tokens before the pieces, "pieces": [{"text", "learned"}, ...]}`.

    A sequence with a chosen reply also has `rejected`, the beginning of the rejected reply as text.
    """
    found = []
    for ids, labels in zip(rows.input_ids[:SAMPLES], rows.labels[:SAMPLES], strict=True):
        kept, learned = ids[-SHOWN:], labels[-SHOWN:] != IGNORED
        cuts = [0, *(np.flatnonzero(np.diff(learned)) + 1).tolist(), len(kept)]
        pieces = [
            {"text": tokenizer.decode(kept[a:b].tolist(), skip_special_tokens=False), "learned": bool(learned[a])}
            for a, b in pairwise(cuts)
        ]
        found.append({"left_out": len(ids) - len(kept), "pieces": pieces})
    for sample, ids in zip(found, rows.rejected, strict=False):
        sample["rejected"] = tokenizer.decode(ids[:SHOWN].tolist(), skip_special_tokens=False)
    return found
