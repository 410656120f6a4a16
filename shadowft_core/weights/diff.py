"""Compares two checkpoints tensor by tensor: which tensors only one has, which differ, and by how much."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.errors import CheckpointError, say
from shadowft_core.files import WORKERS
from shadowft_core.weights import CHUNK, Checkpoint, open_checkpoint

EQUAL, BITS, DTYPE, SHAPE, ONLY_FIRST, ONLY_SECOND = "equal", "bits", "dtype", "shape", "only first", "only second"


def diff(first: Path, second: Path) -> dict[str, Any]:
    """Compare the tensors of two model folders, streamed: memory does not grow with the models.

    Returns `{"format": 1, "equal", "first": {"path", "digest"}, "second": {...}, "counts": {status: tensors},
    "tensors": {name: {"status", ...}}}`. `equal` means equal model digests: same names, dtypes, shapes and bits. A
    tensor of both models whose bits or dtype differ has `changed` (number of entries), `max_abs` and `relative`: the
    largest |second - first| and ||second - first|| / ||first||, in float64, null if not finite. Entries with equal bits
    differ by 0, also if they are NaN. If dtype or shape differ, or one model lacks the tensor, `first` and `second` are
    each [dtype, shape] or null.
    Configs and tokenizers are not compared.

    Raises CheckpointError for a folder that cannot be read.
    """
    try:
        return _diff(open_checkpoint(first), open_checkpoint(second))
    except OSError as error:  # exit code 1 would mean that the two differ
        raise CheckpointError(f"{error.filename or first}: {error.strerror}; expected readable model folders") from None


def _diff(first: Checkpoint, second: Checkpoint) -> dict[str, Any]:
    names = sorted({*first.names, *second.names})
    found: dict[str, dict[str, Any]] = {}
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for name, entry in zip(names, pool.map(lambda name: _compare(first, second, name), names), strict=True):
            found[name] = entry
            if len(found) % 100 == 0:
                say(f"diff: tensor {len(found)}/{len(names)}")
    finally:
        pool.shutdown(cancel_futures=True)
    digests = first.digest(), second.digest()
    statuses = [entry["status"] for entry in found.values()]
    return {
        "format": 1,
        "equal": digests[0] == digests[1],
        "first": {"path": str(first.path), "digest": digests[0]},
        "second": {"path": str(second.path), "digest": digests[1]},
        "counts": {s: statuses.count(s) for s in (EQUAL, BITS, DTYPE, SHAPE, ONLY_FIRST, ONLY_SECOND)},
        "tensors": found,
    }


def _compare(first: Checkpoint, second: Checkpoint, name: str) -> dict[str, Any]:
    layouts = [
        [model.info(name).dtype, list(model.info(name).shape)] if name in model else None for model in (first, second)
    ]
    sides = {"first": layouts[0], "second": layouts[1]}
    if layouts[0] is None or layouts[1] is None:
        return {"status": ONLY_FIRST if layouts[1] is None else ONLY_SECOND, **sides}
    if layouts[0][1] != layouts[1][1]:
        return {"status": SHAPE, **sides}
    same_dtype = layouts[0][0] == layouts[1][0]
    numbers = _numbers(first, second, name, same_dtype)
    if not same_dtype:
        return {"status": DTYPE, **sides, **numbers}
    return {"status": BITS, **numbers} if numbers["changed"] else {"status": EQUAL}


def _numbers(first: Checkpoint, second: Checkpoint, name: str, same_dtype: bool) -> dict[str, Any]:
    """Count the entries that changed and measure by how much. Both checkpoints then have the tensor's digest."""
    changed, largest, apart2, norm2 = 0, 0.0, 0.0, 0.0
    pairs = zip(first.chunks(name, CHUNK, hashed=True), second.chunks(name, CHUNK, hashed=True), strict=True)
    with np.errstate(all="ignore"):  # values that are not finite are reported as null
        for (_, ours), (_, theirs) in pairs:
            x = ours.astype(np.float64)
            norm2 += float(np.dot(x, x))
            if same_dtype:
                unsigned = f"u{ours.dtype.itemsize}"
                moved = ours.view(unsigned) != theirs.view(unsigned)
                if not moved.any():
                    continue
                gap = np.where(moved, theirs.astype(np.float64) - x, 0.0)
            else:
                gap = theirs.astype(np.float64) - x
                moved = gap != 0
            changed += int(np.count_nonzero(moved))
            largest = float(np.maximum(largest, np.abs(gap).max()))  # np.maximum keeps a NaN, max() may drop it
            apart2 += float(np.dot(gap, gap))
    relative = math.sqrt(apart2 / norm2) if 0 < norm2 < math.inf else (0.0 if apart2 == 0 else math.inf)
    return {"changed": changed, "max_abs": _finite(largest), "relative": _finite(relative)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
