"""What training left, and from which model it says it started: read by `extract`, and where no delta is stored."""

from pathlib import Path
from typing import Any, NamedTuple

from shadowft_core.checkpoint import Checkpoint, open_checkpoint, read_json_object
from shadowft_core.delta.adapters import ADAPTER_CONFIG
from shadowft_core.delta.difference import Difference
from shadowft_core.errors import AdapterError, DeltaError, WrongBase


class Tuned(NamedTuple):
    """A folder made by `train` (adapter/ or model/), a PEFT adapter folder or a checkpoint folder."""

    weights: Path
    """the adapter or the checkpoint"""
    record: Path
    train: dict[str, Any] | None
    """what the record says, where there is one"""

    @property
    def adapter(self) -> bool:
        return (self.weights / ADAPTER_CONFIG).is_file()

    def require_start(self, base: Checkpoint) -> None:
        """Raises WrongBase when training started from another model than `base`."""
        digest = base.digest()
        if self.train is not None and (start := self.train.get("model_digest", digest)) != digest:
            raise WrongBase(f"{self.record}: was tuned from {start}, {base.path} is {digest}; pass that model")


def read_tuned(folder: Path) -> Tuned:
    """Raises DeltaError when the folder holds both an adapter and a model."""
    inner = [folder / name for name in ("adapter", "model") if (folder / name).is_dir()]
    if len(inner) > 1:
        raise DeltaError(f"{folder}: holds both adapter/ and model/; pass one of them")
    record = folder / "train.json"
    return Tuned(inner[0] if inner else folder, record, read_json_object(record) if record.is_file() else None)


def open_difference(base: Path, tuned: Path, unrelated: bool = False) -> Difference:
    """The difference of a checkpoint folder and what training left of it.

    Raises AdapterError for an adapter, DeltaError, WrongBase when train.json names another model, CheckpointError for
    unusable folders, and as `Difference` does.
    """
    found = read_tuned(tuned)
    if found.adapter:
        raise AdapterError(f"{found.weights}: is an adapter; run `shadowft extract` and graft its folder with --delta")
    before = open_checkpoint(base)
    difference = Difference(before, open_checkpoint(found.weights), unrelated)
    found.require_start(before)
    return difference
