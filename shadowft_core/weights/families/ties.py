"""Which tensors of a model are tied, by the table of families or, for an unknown class, by config and equal weights."""

from functools import cache
from pathlib import Path
from typing import Protocol

from shadowft_core.errors import CheckpointError, say
from shadowft_core.weights.families.family import Family
from shadowft_core.weights.header import TensorInfo


class Model(Protocol):
    """The part of `Checkpoint` that this module uses; checkpoint.py imports this module."""

    @property
    def path(self) -> Path: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def family(self) -> Family: ...
    @property
    def ties(self) -> dict[str, str]: ...
    def __contains__(self, name: object) -> bool: ...
    def info(self, name: str) -> TensorInfo: ...
    def equal(self, one: str, other: str) -> bool: ...


def ties_of(model: Model) -> dict[str, str]:
    """Tied tensors by name, stored or not, each with the stored tensor that represents both.

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


def _evident(model: Model) -> dict[str, str]:
    """Ties among tensors that have a row per token or a head's shape; config and equal weights must agree on them."""
    family, tied = model.family, model.family.config_tie
    shapes = {name: model.info(name).shape for name in model.names}
    heads = {shape for name, shape in shapes.items() if family.is_head(name)}
    matrices = ((name, shape) for name, shape in shapes.items() if len(shape) == 2)
    rows = [name for name, shape in matrices if shape in heads or family.has_token_rows(name, shape)]
    rows.sort(
        key=lambda name: (not family.is_embedding(name), family.is_head(name))
    )  # embeddings first: they represent both
    found: dict[str, str] = {}
    for number, name in enumerate(rows):
        own = (other for other in rows[:number] if other not in found)
        alike = next((other for other in own if shapes[other] == shapes[name] and model.equal(other, name)), None)
        if alike is not None:
            found[name] = alike
    others = [name for name in rows if not family.is_head(name)]
    for head in filter(family.is_head, rows):
        if tied is not None and tied != (head in found) and others:
            raise CheckpointError(
                f"{model.path}: {family.title} is not a known model family; config.json says "
                f"tie_word_embeddings={str(tied).lower()}, yet {head} and {found.get(head, others[0])} "
                f"{'are equal' if head in found else 'differ'}; correct the one that is wrong"
            )
    return found


def require_equal(model: Model) -> None:
    """Raise CheckpointError when tied tensors that are both stored differ: transformers would not tie them."""
    for name, home in model.ties.items():
        if name in model and not model.equal(name, home):
            raise CheckpointError(
                f"{model.path}: config.json ties {name} to {home}, yet they differ; set tie_word_embeddings to "
                "false if both were trained, otherwise remove the stale one"
            )


def note_unknown(model: Model) -> None:
    """Print to stderr, once per model, that its family is not in the table and how it is judged instead."""
    if not model.family.known:
        _note(str(model.path), model.family.title)


@cache
def _note(path: str, title: str) -> None:
    say(
        f"note: {path}: {title} is not a known model family; ties are taken from config.json and equal weights, kinds "
        "of modules from names"
    )
