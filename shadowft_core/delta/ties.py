"""Adapters of tied tensors: the Base stores one tensor for all tied ones, so their changes must be equal."""

import numpy as np

from shadowft_core.delta.adapter import Adapter
from shadowft_core.delta.change import Change
from shadowft_core.errors import AdapterError


def merge_tied(adapter: Adapter) -> None:
    """Leave one change for every set of tied tensors. Raises AdapterError if their changes differ."""
    for alias, home in adapter.before.ties.items():
        if not {alias, home} & set(adapter.changes):
            continue
        other, kept = (adapter.changes.pop(name, Change()) for name in (alias, home))
        # PEFT itself ties trained rows if the config of the whole model is tied.
        only_rows = other == Change() and kept == Change(rows=kept.rows, indices=kept.indices)
        if not (only_rows and not adapter.before.family.ties_within(alias)) and not _same(adapter, other, kept):
            # PEFT honours ensure_weight_tying only for an embedding called embed_tokens.
            honoured = "embed_tokens" in home and not adapter.settings.tied_training
            remedy = (
                "train with ensure_weight_tying=True, or merge it" if honoured else "merge it where it was trained,"
            )
            raise AdapterError(
                f"{adapter.file}: {adapter.before.path} ties {alias} to {home}, the adapter trained them separately; "
                f"{remedy} into an untied Base"
            )
        adapter.changes[home] = kept


def _same(adapter: Adapter, one: Change, other: Change) -> bool:
    def arrays(change: Change) -> list[np.ndarray]:
        pair = change.factors
        factors = [] if pair is None else [np.array(pair.scaling), pair.left(), pair.right()]
        return [*factors, *(adapter.read(key) for key in (change.replaced, change.magnitude) if key)]

    first, second = arrays(one), arrays(other)
    return len(first) == len(second) > 0 and all(map(np.array_equal, first, second))
