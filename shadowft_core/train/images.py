"""Makes batches of rows with images: the encoded ids and labels, and the inputs that the processor makes of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from shadowft_core.errors import TrainError
from shadowft_core.rendering import IGNORED, Processor, RowError

_BY_TOKEN = ("token_type_ids", "cross_attention_mask")  # suffixes of inputs with one value per token


class ImageCollator:
    """Makes a batch of rows {input_ids, labels, text, files}; `files` may be empty.

    Reads the images of a batch when the batch is made, so memory holds the pixels of one batch. Raises TrainError if
    the processor refuses the batch or gives other ids than for a single row, DataError for a missing file.
    """

    def __init__(self, processor: Processor, pad: int) -> None:
        self._processor, self._pad = processor, pad

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        files = [[Path(file) for file in row["files"]] for row in rows]
        try:
            found = self._processor.tensors([row["text"] for row in rows], files)
        except RowError as error:
            raise TrainError(f"a batch of {len(rows)} rows: {error}; set train.batch_size to 1") from None
        made = found.pop("input_ids")
        shape = (len(rows), max(len(row["input_ids"]) for row in rows))
        batch = {
            "input_ids": torch.full(shape, self._pad),
            "labels": torch.full(shape, IGNORED),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
        }
        for at, row in enumerate(rows):
            size = len(row["input_ids"])
            batch["input_ids"][at, :size] = torch.tensor(row["input_ids"])
            batch["labels"][at, :size] = torch.tensor(row["labels"])
            batch["attention_mask"][at, :size] = 1
            # The last id may be an end token that the template does not write.
            if not torch.equal(batch["input_ids"][at, : size - 1], made[at, : size - 1]):
                raise TrainError(
                    f"{row['files']}: the processor gives other tokens in a batch; set train.batch_size to 1"
                )
        for name, value in found.items():
            if name.endswith(_BY_TOKEN):
                fitted = value.new_zeros((*shape, *value.shape[2:]))
                width = min(shape[1], value.shape[1])
                fitted[:, :width] = value[:, :width]
                batch[name] = fitted
            elif name != "attention_mask":
                batch[name] = value
        return batch
