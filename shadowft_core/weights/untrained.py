"""Finds tokens whose rows of embedding and head a Base never trained, while its Instruct did.

The row of a token that is in no text stays where weight decay or the initialisation left it: at zero, or near other
unused rows. In Llama 3's Base, the rows of `<|start_header_id|>` and `<|eot_id|>` have the norm 1.7e-21, usual rows
0.59; in the head of Llama 3.1, their rows are nearly equal. In Qwen 2.5's Base, unused rows are zero, but the tokens of
its template are trained. Sources: Land and Bartolo, "Fishing for Magikarp" (arXiv 2405.05417), who use the norm of the
embedding's row; `fix_untrained_tokens` of unsloth-zoo, which compares rows with zero and with each other.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from shadowft_core.weights.checkpoint import Checkpoint
from shadowft_core.weights.header import FLOATS
from shadowft_core.weights.similarity import ROW_EQUAL, ROW_ZERO

USUAL, RUN = 64, 16  # rows read as a sample of usual rows, and the number of adjacent ones
UNUSED = 512  # rows compared with those of the tokens
FEWEST = 8  # unused rows needed to estimate their middle


@dataclass(frozen=True)
class UntrainedToken:
    """A token, and why its rows in the Base count as untrained. "" for a trained row, and for a tied head."""

    token: str
    id: int
    embedding: str
    head: str

    def as_json(self) -> dict[str, str | int]:
        return asdict(self)

    def __str__(self) -> str:
        found = [f"{part} {what}" for part, what in (("embedding", self.embedding), ("head", self.head)) if what]
        return f"{self.token} (id {self.id}: {', '.join(found)})"


def untrained_tokens(
    base: Checkpoint,
    instruct: Checkpoint,
    tokens: Mapping[int, str],
    predicted: Collection[int],
    unused: Collection[int],
) -> list[UntrainedToken]:
    """The tokens among `tokens` (text by id) that the Base never trained, by ascending id. Reads a few rows of each.

    `unused` are ids that no text should have, such as reserved tokens and padding. A row is untrained if its norm is at
    most `ROW_ZERO` times that of a usual row, or if it differs by at most `ROW_EQUAL` from the row of another token in
    `tokens` or `unused`, or from the middle of the rows of `unused`.

    `predicted` are the ids that a reply can have. Rows of the head count only for these: the head is never trained to
    predict other tokens, such as `<s>`. Left out are tokens that the Instruct never trained either, and ids without a
    row.
    """
    found = _untrained(base, tokens, predicted, unused)
    if not found:
        return []
    theirs = _untrained(instruct, tokens, predicted, unused)
    return [
        UntrainedToken(tokens[number], number, parts.get("embedding", ""), parts.get("head", ""))
        for number, parts in sorted(found.items())
        if not parts.keys() <= theirs.get(number, {}).keys()
    ]


def vocabulary_tensors(model: Checkpoint) -> dict[str, str]:
    """The names of the stored tensors with a row for each token: `embedding` and, unless it is tied, `head`."""
    stored = [name for name in model.names if model.home(name) == name and len(model.info(name).shape) == 2]
    embedding = next(filter(model.family.is_embedding, stored), None)
    heads = [name for name in stored if model.family.is_head(name) and name != embedding]
    tied = model.head_is_tied
    found = {"embedding": embedding or (heads[0] if tied and heads else None)}
    found["head"] = None if tied else next(iter(heads), None)
    return {part: name for part, name in found.items() if name is not None and model.info(name).dtype in FLOATS}


def _untrained(
    model: Checkpoint, tokens: Mapping[int, str], predicted: Collection[int], unused: Collection[int]
) -> dict[int, dict[str, str]]:
    """Why rows count as untrained, by id, then by `embedding` and `head`."""
    found: dict[int, dict[str, str]] = {}
    for part, name in vocabulary_tensors(model).items():
        for number, what in _judged(model, name, tokens, unused).items():
            if part == "embedding" or number in predicted or number in found:
                found.setdefault(number, {})[part] = what
    return found


def _judged(model: Checkpoint, name: str, tokens: Mapping[int, str], unused: Collection[int]) -> dict[int, str]:
    size = model.info(name).shape[0]
    usual = {size * at // USUAL + step for at in range(0, USUAL, RUN) for step in range(RUN)}
    rows = _read(model, name, {number for number in {*tokens, *sorted(unused)[:UNUSED], *usual} if 0 <= number < size})
    middle_norm = float(np.median([_norm(rows[number]) for number in usual if number in rows] or [0.0]))
    spare = [rows[number] for number in sorted(unused)[:UNUSED] if number in rows and number not in tokens]
    middle = np.median(spare, axis=0) if len(spare) >= FEWEST else None
    others = [number for number in rows if number in tokens or number in unused]
    found = {}
    for number in tokens.keys() & rows.keys():
        row, norm = rows[number], _norm(rows[number])
        equal = sum(_norm(row - rows[other]) <= ROW_EQUAL * norm for other in others if other != number)
        if norm <= ROW_ZERO * middle_norm:
            found[number] = f"{'near ' if norm else ''}zero"
        elif equal:
            found[number] = f"equal to {equal} other row{'s' * (equal > 1)}"
        elif middle is not None and _norm(row - middle) <= ROW_EQUAL * norm:
            found[number] = f"never moved from the middle of {len(spare)} unused rows"
    return found


def _read(model: Checkpoint, name: str, numbers: Collection[int]) -> dict[int, np.ndarray]:
    """Rows by id, float32. Adjacent rows are read together."""
    ordered, width = np.array(sorted(numbers)), model.info(name).shape[1]
    rows: dict[int, np.ndarray] = {}
    for run in np.split(ordered, np.flatnonzero(np.diff(ordered) != 1) + 1) if len(ordered) else []:
        read = model.part(name, int(run[0]) * width, len(run) * width).astype(np.float32).reshape(-1, width)
        rows |= dict(zip(run.tolist(), read, strict=True))
    return rows


def _norm(row: np.ndarray) -> float:
    return float(np.linalg.norm(row.astype(np.float64)))
