"""Encodes prepared rows as sequences of token ids and labels, with the rendering that evaluation uses too."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import TrainError
from shadowft_core.rendering import IGNORED, Renderer, RowError, prepared_rows

if TYPE_CHECKING:
    import numpy as np

SHOWN = 20  # sources of refused rows that train.json names for each reason


@dataclass
class Encoded:
    """Sequences for the trainer, int32. `input_ids[i]` and `labels[i]` have equal length; labels are ids or IGNORED.

    For a model that takes images, the processor makes its other inputs from `texts[i]` and the images `files[i]`.
    Of preferences, the sequences end with the chosen replies; `rejected[i]` are the ids of the rejected reply to the
    same prompt (`prompt`). `origins[i]` are the rows (`file:row`) in a sequence: one, or several once packed.
    """

    input_ids: list["np.ndarray"] = field(default_factory=list)
    labels: list["np.ndarray"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    files: list[list[str]] = field(default_factory=list)
    rejected: list["np.ndarray"] = field(default_factory=list)
    origins: list[list[str]] = field(default_factory=list)
    read: int = 0
    used: int = 0
    too_long: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def prompt(self, at: int) -> int:
        """The number of ids before the first learned one of a sequence."""
        return int((self.labels[at] != IGNORED).argmax())

    def digest(self) -> str:
        """SHA-256 over ids, labels and rejected replies, in their order."""
        found = hashlib.sha256()
        for sequences in (self.input_ids, self.labels, self.rejected):
            for ids in sequences:
                found.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        return f"sha256:{found.hexdigest()}"

    def refuse(self, reason: RowError, source: str) -> None:
        """Count a row that cannot be rendered."""
        self.refused[str(reason)] += 1
        sources = self.sources.setdefault(str(reason), [])
        sources += [source] if len(sources) < SHOWN else []

    def counts(self) -> dict[str, Any]:
        """The counts for train.json: rows used and left out, sequences, images, tokens, and tokens in the loss."""
        prompts = sum(self.prompt(at) for at in range(len(self.rejected)))
        replies = sum(map(len, self.rejected))
        return {
            "rows": self.used,
            "sequences": len(self.input_ids) + len(self.rejected),
            "images": sum(map(len, self.files)),
            "too_long": self.too_long,
            "refused": {
                reason: {"rows": count, "sources": self.sources[reason]} for reason, count in self.refused.most_common()
            },
            "tokens": sum(map(len, self.input_ids)) + prompts + replies,
            "learned_tokens": int(sum((row != IGNORED).sum() for row in self.labels)) + replies,
        }


def encode_file(path: Path, renderer: Renderer, max_length: int, images: bool = False) -> Encoded:
    """Encode a parquet file made by `prepare`. With `images`, also keep the texts and image files.

    Leaves out, and counts with its source, a row that the renderer refuses. Leaves out and counts a row if one of its
    sequences has more than `max_length` tokens; nothing is truncated.
    Raises DataError if the file cannot be read.
    """
    import numpy as np

    encoded = Encoded()
    for messages, tools, source, _ in prepared_rows(path):
        encoded.read += 1
        try:
            samples = renderer.samples(messages, tools)
        except RowError as reason:
            encoded.refuse(reason, source)
            continue
        if any(len(sample.input_ids) > max_length for sample in samples):
            encoded.too_long += 1
            continue
        encoded.used += 1
        for sample in samples:
            encoded.input_ids.append(np.array(sample.input_ids, np.int32))
            encoded.labels.append(np.array(sample.labels, np.int32))
            encoded.origins.append([source])
            if images:
                encoded.texts.append(sample.text)
                encoded.files.append([str(path) for path in sample.images])
    return encoded


def require_enough(encoded: Encoded, path: Path, max_length: int, share: float) -> None:
    """Raises TrainError if no row is left, or more than `share` of the rows are left out."""
    out = encoded.read - encoded.used
    if encoded.used and out <= share * encoded.read:
        return
    reasons = [f"{encoded.too_long} longer than train.max_length {max_length}"] if encoded.too_long else []
    reasons += [f"{count} {reason} ({encoded.sources[reason][0]})" for reason, count in encoded.refused.most_common(3)]
    raise TrainError(
        f"{path}: {out} of {encoded.read} rows are left out ({'; '.join(reasons) or 'the file is empty'}), but "
        f"train.max_left_out allows {share:.0%}; shorten or mend the rows, or raise train.max_length or max_left_out"
    )


def ids_column(sequences: list["np.ndarray"]) -> Any:
    """Sequences of ids as an Arrow array of lists of int32."""
    import numpy as np
    import pyarrow as pa

    ends = np.cumsum([0, *map(len, sequences)], dtype=np.int64)
    return pa.LargeListArray.from_arrays(ends, np.concatenate(sequences) if sequences else np.empty(0, np.int32))
