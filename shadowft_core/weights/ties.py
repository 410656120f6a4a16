"""Which tensors of a model are one tensor, as the table of families has it, or as config and equal weights show."""

import sys
from functools import cache
from typing import TYPE_CHECKING

from shadowft_core.errors import CheckpointError

if TYPE_CHECKING:
    from shadowft_core.weights.checkpoint import Checkpoint


def ties_of(model: "Checkpoint") -> dict[str, str]:
    """Tied tensors by name, stored or not, each with the stored one that stands for both.

    Raises CheckpointError when config and weights of a family that is not in the table disagree.
    """
    found = model.family.ties()
    if found is None:
        return _evident(model)
    # Where no config can untie them, transformers ties unless the file holds two tensors that differ (T5 1.1).
    apart = {
        name
        for name in model.family.tied_by_class() & found.keys()
        if name in model and not model.equal(name, found[name])
    }
    return {name: home for name, home in found.items() if name not in apart}


def _evident(model: "Checkpoint") -> dict[str, str]:
    """Config and equal weights must agree, for every tensor with a row per token or the shape of a head."""
    family, says = model.family, model.family.says_tied
    shapes = {name: model.info(name).shape for name in model.names}
    heads = {shape for name, shape in shapes.items() if family.is_head(name)}
    matrices = ((name, shape) for name, shape in shapes.items() if len(shape) == 2)
    rows = [name for name, shape in matrices if shape in heads or family.has_token_rows(name, shape)]
    rows.sort(key=lambda name: (not family.is_embedding(name), family.is_head(name)))  # an embedding stands for both
    found: dict[str, str] = {}
    for number, name in enumerate(rows):
        own = (other for other in rows[:number] if other not in found)
        alike = next((other for other in own if shapes[other] == shapes[name] and model.equal(other, name)), None)
        if alike is not None:
            found[name] = alike
    others = [name for name in rows if not family.is_head(name)]
    for head in filter(family.is_head, rows):
        if says is not None and says != (head in found) and others:
            raise CheckpointError(
                f"{model.path}: {family.title} is not a known model family; config.json says "
                f"tie_word_embeddings={str(says).lower()}, yet {head} and {found.get(head, others[0])} "
                f"{'are equal' if head in found else 'differ'}; correct the one that is wrong"
            )
    return found


def require_equal(model: "Checkpoint") -> None:
    """Raises CheckpointError when tied tensors that are both stored differ: transformers would not tie them."""
    for name, home in model.ties.items():
        if name in model and not model.equal(name, home):
            raise CheckpointError(
                f"{model.path}: config.json ties {name} to {home}, yet they differ; set tie_word_embeddings to "
                "false if both were trained, otherwise remove the stale one"
            )


def note_unknown(model: "Checkpoint") -> None:
    """Say on stderr, once per model, that its family is not in the table and how it is judged instead."""
    if not model.family.known:
        _note(str(model.path), model.family.title)


@cache
def _note(path: str, title: str) -> None:
    print(
        f"note: {path}: {title} is not a known model family; ties are taken from config.json and equal weights, kinds "
        "of modules from names",
        file=sys.stderr,
    )
