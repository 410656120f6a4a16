"""Arrays that a thread reuses. By measurement, allocating fresh memory costs more than the arithmetic on it."""

import threading
from typing import Any

import numpy as np


class Scratch(threading.local):
    """Reusable flat arrays by label, one set per thread. An array still has the content of its last use."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, Any], np.ndarray] = {}

    def array(self, label: str, size: int, dtype: Any) -> np.ndarray:
        """A flat array of `size` elements; valid until the same thread requests this label and dtype again."""
        key = (label, np.dtype(dtype))
        kept = self._kept.get(key)
        if kept is None or kept.size < size:
            kept = self._kept[key] = np.empty(size, dtype)
        return kept[:size]


scratch = Scratch()
