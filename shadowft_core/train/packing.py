"""Packs sequences: several in one of max_length tokens, so that fewer tokens are padding. They do not mix.

The position ids restart with each sequence and there is no attention mask. From that, transformers makes a mask that
keeps the sequences apart (masking_utils.find_packed_sequence_indices), with sdpa and eager attention for every row of a
batch; flash attention takes one flat row. A model of which this is not true is refused (`require_packable`).
"""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from trl import pack_dataset

from shadowft_core.errors import TrainError
from shadowft_core.rendering import IGNORED
from shadowft_core.train.encode import ids_column
from shadowft_core.train.sources import SOURCES

TOLERANCE = {"sdpa": 1e-4, "eager": 1e-4, "flash_attention_2": 3e-2}
"""Largest difference of logits as a share of the largest logit; flash attention computes in bfloat16"""

NUMBER = "number"  # column: of the sequence of each token
CHECKED = 64  # tokens of each sequence of the check


def packed(rows: datasets.Dataset, max_length: int) -> datasets.Dataset:
    """The sequences in packs of at most `max_length` tokens: columns input_ids, labels, seq_lengths, and sources.

    Best fit decreasing (arXiv 2404.10830) over all rows at once. Nothing is cut or split, since no row is longer. The
    same rows give the same packs.
    """
    tokens = sum(map(len, rows["input_ids"]))
    sources = rows[SOURCES] if SOURCES in rows.column_names else []
    if sources:  # TRL packs columns with one value per token
        numbers = ids_column([np.full(len(ids), at, np.int32) for at, ids in enumerate(rows["input_ids"])])
        rows = datasets.Dataset(rows.remove_columns(SOURCES).data.table.append_column(NUMBER, numbers))
    packs = pack_dataset(rows, max_length, "bfd", {"batch_size": len(rows), "load_from_cache_file": False})
    if sum(map(sum, packs["seq_lengths"])) != tokens:
        raise TrainError(f"packing lost tokens: {tokens} before; a sequence is longer than max_length {max_length}")
    if not sources:
        return packs
    found = [[source for number in dict.fromkeys(numbers) for source in sources[number]] for numbers in packs[NUMBER]]
    return packs.remove_columns(NUMBER).add_column(SOURCES, found)


def fill(packs: datasets.Dataset, max_length: int) -> dict[str, Any]:
    """`packing` of train.json: the number of packs, sequences and tokens, and the share of the packs that they fill."""
    lengths = packs["seq_lengths"]
    tokens = sum(map(sum, lengths))
    return {
        "packs": len(packs),
        "sequences": sum(map(len, lengths)),
        "tokens": tokens,
        "fill": round(tokens / (len(packs) * max_length), 4),
    }


class PackingCollator:
    """Makes batches of packs (or of single sequences, in validation): input_ids, labels, position_ids, `tokens`.

    Each is [B, longest pack], padded at the end, int64; with `flat`, [1, all tokens] without padding. Padding counts as
    one more sequence. `tokens` is the number of tokens that are no padding, int64 []. The first label of a sequence is
    IGNORED, because the token before it belongs to another one.
    """

    def __init__(self, pad: int, flat: bool = False) -> None:
        self._pad, self._flat = pad, flat

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        columns: dict[str, list[torch.Tensor]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            positions = torch.cat([torch.arange(length) for length in row.get("seq_lengths", [len(ids)])])
            labels[positions == 0] = IGNORED
            for name, values in zip(columns, (ids, labels, positions), strict=True):
                columns[name].append(values.long())
        tokens = torch.tensor(sum(map(len, columns["input_ids"])))
        if self._flat:
            return {name: torch.cat(values)[None] for name, values in columns.items()} | {"tokens": tokens}
        width = max(map(len, columns["input_ids"]))
        columns["position_ids"] = [torch.cat([p, torch.arange(width - len(p))]) for p in columns["position_ids"]]
        padding = {"input_ids": self._pad, "labels": IGNORED, "position_ids": 0}
        return {
            name: pad_sequence(values, batch_first=True, padding_value=padding[name])
            for name, values in columns.items()
        } | {"tokens": tokens}


class PackedTokens:
    """What a trainer of TRL needs for the batches of `PackingCollator`; a base of that trainer."""

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss. Counts the tokens, for which TRL without an attention mask takes the width of the batch."""
        before = self._total_train_tokens
        tokens = self.accelerator.gather_for_metrics(inputs.pop("tokens")).sum().item()
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]  # of TRL's trainer
        if self.model.training:
            self._total_train_tokens = before + tokens
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss


def require_packable(network: Any, rows: datasets.Dataset, pad: int) -> None:
    """Raise TrainError unless two sequences in one pack get the logits that each gets alone.

    Takes the first two sequences of `rows`, at most CHECKED tokens of each. Compares in float32, with flash attention
    in bfloat16, within TOLERANCE. Models with a recurrent or convolutional layer fail: it reads across the border.
    """
    attention = network.config.get_text_config()._attn_implementation or "sdpa"
    flat, tolerance = attention == "flash_attention_2", TOLERANCE.get(attention, 1e-4)
    firsts = [rows[at % len(rows)]["input_ids"][:CHECKED] for at in (0, 1)]
    collate, device, training = PackingCollator(pad, flat), next(network.parameters()).device, network.training

    def logits(sequences: list[list[int]]) -> torch.Tensor:
        ids = [token for sequence in sequences for token in sequence]
        batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": list(map(len, sequences))}])
        given = {name: batch[name].to(device) for name in ("input_ids", "position_ids")}
        return network(**given, use_cache=False).logits[0].float()

    network.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=flat):
            together, apart = logits(firsts), torch.cat([logits([sequence]) for sequence in firsts])
    finally:
        network.train(training)
    difference, most = float((together - apart).abs().max()), tolerance * float(apart.abs().max())
    if not difference <= most:
        raise TrainError(
            f"train.packing: in a {network.config.model_type} model, packed sequences are not apart: their logits "
            f"differ by {difference:.2g} from those of each alone, allowed is {most:.2g}; set train.packing to false"
        )
