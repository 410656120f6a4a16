"""What a model expects next: the log-probabilities of every token of its vocabulary after each position of a text."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEXT = "next_logprobs"
Rows = NDArray[np.float32]
Following = tuple[Sequence[int], Sequence[int]]  # token ids, and the positions after which the next token is asked for


def next_logprobs(model: Any, ids: Sequence[int], at: Sequence[int]) -> Rows:
    """Natural log-probabilities, [len(at), vocabulary]: row i is of the token after `ids[: at[i] + 1]`.

    One sequence at a time, so no padding changes a bit. The log-softmax is computed in float64, of the model's logits,
    and only for the positions `at`, if the model's class can leave out the others.
    """
    import torch

    inputs = torch.tensor([list(ids)], device=model.device)
    wanted = torch.tensor(list(at), device=model.device)
    chooses = "logits_to_keep" in signature(model.forward).parameters
    with torch.no_grad():
        logits = model(input_ids=inputs, **({"logits_to_keep": wanted} if chooses else {})).logits[0]
        rows = np.empty((len(at), logits.shape[-1]), dtype=np.float32)
        for row, one in enumerate(logits if chooses else logits[wanted]):  # one, as float64 needs much memory
            rows[row] = one.double().log_softmax(-1).float().cpu().numpy()
    return rows


def write_rows(folder: Path, rows: Rows) -> str:
    """Write rows to a file for another process; returns its name. They are too many for a message."""
    with NamedTemporaryFile(dir=folder, suffix=f"-{rows.shape[1]}", delete=False) as file:
        rows.tofile(file)
    return Path(file.name).name


def read_rows(path: Path) -> Rows:
    """Read and remove a file of `write_rows`."""
    rows: Rows = np.fromfile(path, dtype=np.float32).reshape(-1, int(path.name.rpartition("-")[2]))
    path.unlink()
    return rows
