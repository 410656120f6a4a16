"""Finds near duplicates with MinHash signatures of word sequences, and confirms them by exact Jaccard similarity.

Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec et al., Mining of Massive
Datasets, chapter 3. 20 bands of 5 of the 100 hash values find 99.96 % of pairs at similarity 0.8, 20 % of those at 0.4.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from shadowft_core.prepare.table import words_of

WORDS = 3  # in a sequence
LEAST = 12  # sequences; texts with fewer are not compared
BANDS, ROWS = 20, 5
_SEED = 1


def sequences(text: str) -> set[str]:
    """The distinct sequences of WORDS words, case folded; numbers count as words."""
    words = words_of(text)
    return {" ".join(words[at : at + WORDS]) for at in range(len(words) - WORDS + 1)}


class Signatures:
    """A file of band keys, uint64 (texts, BANDS), in the order of the texts; 0 for texts that are too short."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._texts = 0

    def add(self, texts: Iterable[str]) -> None:
        """Append some texts."""
        from rensa import RMinHash

        sets = [list(found) if len(found := sequences(text)) >= LEAST else [] for text in texts]
        rows = RMinHash.digest_matrix_from_token_sets(sets, BANDS * ROWS, _SEED).to_rows()
        values = np.array(rows, np.uint64).reshape(len(sets), BANDS, ROWS)
        keys = np.zeros((len(sets), BANDS), np.uint64)
        for row in range(ROWS):  # a polynomial hash of the five values
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + values[:, :, row] + np.uint64(1)
        keys[[not one for one in sets]] = 0
        with self._file.open("ab") as file:
            file.write(keys.tobytes())
        self._texts += len(sets)

    def candidates(self, among: np.ndarray) -> np.ndarray:
        """Pairs of texts that share a band, int64 (n, 2), the earlier text first.

        Each text is paired with the first text in `among`, a bool mask (texts,), that has the same key in a band.
        """
        if not among.any():
            return np.empty((0, 2), np.int64)
        keys = np.memmap(self._file, np.uint64, "r", shape=(self._texts, BANDS))
        found = []
        for band in range(BANDS):
            column = np.ascontiguousarray(keys[:, band])
            order = np.argsort(column, kind="stable")
            column = column[order]
            begins = np.r_[True, column[1:] != column[:-1]]
            place = np.where(among[order], np.arange(len(order)), len(order))
            first = np.minimum.reduceat(place, np.flatnonzero(begins))[np.cumsum(begins) - 1]
            at = np.flatnonzero((first < len(order)) & (column != 0))
            pairs = np.stack([order[first[at]], order[at]], axis=1)
            found.append(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1))
        return np.unique(np.concatenate(found), axis=0)


def confirmed(pairs: np.ndarray, texts: Mapping[int, str], threshold: float) -> Iterator[tuple[int, int]]:
    """The pairs whose Jaccard similarity is at least `threshold`. `texts` has the text of each number in `pairs`."""
    known: dict[int, set[str]] = {}
    for first, second in pairs.tolist():
        one, other = (known.setdefault(at, sequences(texts[at])) for at in (first, second))
        if len(one & other) >= threshold * len(one | other):
            yield first, second
