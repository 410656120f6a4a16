"""Compares two vocabularies token by token, and matches the rows of embeddings and heads by token."""

from functools import cached_property

import numpy as np

from shadowft_core.errors import PairError
from shadowft_core.files import read_json_object, read_regular
from shadowft_core.limits import TOKENIZER_BYTES
from shadowft_core.weights import Checkpoint, Runs, fitted, marks_of, read_vocabulary, rows_by_token, runs_of
from shadowft_core.weights.similarity import TOKENS_UNRELATED


class Vocabularies:
    """Token by id of both models, from tokenizer.json; `known` is false when one has none."""

    def __init__(self, base: Checkpoint, instruct: Checkpoint) -> None:
        files = [model.path / "tokenizer.json" for model in (base, instruct)]
        read = (read_regular(file, TOKENIZER_BYTES) for file in files)
        self.same_file = all(file.is_file() for file in files) and next(read) == next(read)
        first = read_vocabulary(base.path)
        found = [first, first if self.same_file else read_vocabulary(instruct.path)]
        self.sizes = [len(one[0]) if one else 0 for one in found]
        self.known = all(one is not None for one in found)
        # Without both vocabularies, rows match by number.
        self.base, self.instruct = (one[0] if one and self.known else {} for one in found)

    @cached_property
    def equal(self) -> bool:
        return self.base == self.instruct

    @cached_property
    def _marks(self) -> tuple[np.ndarray, np.ndarray]:
        return marks_of(self.base), marks_of(self.instruct)

    def runs(self, base_rows: int, instruct_rows: int) -> Runs:
        """Rows of the Instruct and the Base for the same token; padding is matched by row number."""
        if self.equal:
            return np.array([[0, 0, min(base_rows, instruct_rows)]])
        base, instruct = self._marks
        return runs_of(rows_by_token(fitted(instruct, instruct_rows), fitted(base, base_rows)))


def compare_tokenizers(base: Checkpoint, instruct: Checkpoint, found: Vocabularies) -> list[str]:
    """Return warnings with counts. Raises PairError when the vocabularies mostly differ."""
    if not found.known:
        return ["the vocabularies were not compared: both need a tokenizer.json"]
    if found.same_file:
        return []
    ours, theirs = found.base, found.instruct
    texts, their_texts = set(ours.values()), set(theirs.values())
    shared, smaller = len(texts & their_texts), min(len(texts), len(their_texts))
    if shared < TOKENS_UNRELATED * smaller:
        raise PairError(
            f"the vocabularies mostly differ: {shared} tokens in common, {len(texts)} in the Base, "
            f"{len(their_texts)} in the Instruct"
        )
    warned = []
    differing = sorted(i for i in ours.keys() & theirs.keys() if ours[i] != theirs[i])
    moved = [i for i in differing if theirs[i] in texts]
    if moved:
        token = theirs[moved[0]]
        before = next(number for number, text in ours.items() if text == token)
        warned.append(
            f"{len(moved)} tokens have another id, the first is {token!r}: {before} in the Base, {moved[0]} in the "
            "Instruct; their rows are matched by token"
        )
    if renamed := [i for i in differing if theirs[i] not in texts]:
        first = f"{renamed[0]} is {ours[renamed[0]]!r} in the Base, {theirs[renamed[0]]!r} in the Instruct"
        warned.append(f"{len(renamed)} token ids name different tokens, the first is {first}")
    if only := ours.keys() - theirs.keys():
        warned.append(f"{len(only)} token ids are only in the Base, the first is {min(only)} {ours[min(only)]!r}")
    if only := theirs.keys() - ours.keys():
        warned.append(f"{len(only)} token ids are only in the Instruct, the first is {min(only)} {theirs[min(only)]!r}")
    files = [read_json_object(model.path / "tokenizer.json", TOKENIZER_BYTES) for model in (base, instruct)]
    for part in ("normalizer", "pre_tokenizer"):
        if files[0].get(part) != files[1].get(part):
            warned.append(f"the tokenizers differ in their {part}")
    return warned
