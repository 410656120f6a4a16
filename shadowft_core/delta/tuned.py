"""The result of a training and the record of its starting model, as `extract` and one-pass grafts read them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shadowft_core.delta.adapter import ADAPTER_CONFIG
from shadowft_core.delta.difference import Difference
from shadowft_core.errors import AdapterError, DeltaError, WrongBaseError
from shadowft_core.files import read_json_object
from shadowft_core.weights import Checkpoint, open_checkpoint

_ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")
_MODEL = re.compile(r"(?!adapter_).*\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?")


class Tuned(NamedTuple):
    """A folder made by `train` (adapter/ or model/), a PEFT adapter folder or a checkpoint folder."""

    weights: Path
    """the adapter or the checkpoint"""
    record: Path
    train: dict[str, Any] | None
    """content of the record, if there is one"""

    @property
    def adapter(self) -> bool:
        return (self.weights / ADAPTER_CONFIG).is_file()

    def require_start(self, base: Checkpoint) -> None:
        """Raise WrongBaseError when, according to the record, training started from another model than `base`."""
        digest = base.digest()
        if self.train is not None and (start := self.train.get("model_digest", digest)) != digest:
            raise WrongBaseError(
                f"{self.record}: was tuned from {start}, but {base.path} is {digest}; pass the model it was tuned from"
            )


def read_tuned(folder: Path) -> Tuned:
    """Find the result of a training in a folder; subfolders such as checkpoint-500/ are ignored.

    Raises DeltaError naming both files when the folder is ambiguous, CheckpointError when train.json is damaged.
    """
    inner = [name for name in ("adapter", "model") if (folder / name).is_dir()]
    found = [*(f"{name}/" for name in inner), *_kinds(folder)]
    if len(found) == 1 and inner:
        weights = folder / inner[0]
        found = [f"{inner[0]}/{name}" for name in _kinds(weights)]
    else:
        weights = folder
    if len(found) > 1:
        raise DeltaError(f"{folder}: contains both {found[0]} and {found[1]}; remove one, or pass a folder with one")
    record = folder / "train.json"
    return Tuned(weights, record, read_json_object(record) if record.is_file() else None)


def _kinds(folder: Path) -> list[str]:
    """One file name for each kind of tuned model in a folder: an adapter, a whole model."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    return [name for pattern in (_ADAPTER, _MODEL) if (name := next(filter(pattern.fullmatch, names), None))]


def open_difference(base: Path, tuned: Path, unrelated: bool = False, ignore: Sequence[str] = ()) -> Difference:
    """The difference of a checkpoint folder and a model tuned from it.

    `ignore` are patterns of tensors that only one side has. They need not match here: they may be meant for the
    Instruct.

    Raises AdapterError for an adapter, DeltaError, WrongBaseError when train.json names another model, CheckpointError
    for unusable folders, and what `Difference` raises.
    """
    found = read_tuned(tuned)
    if found.adapter:
        raise AdapterError(f"{found.weights}: is an adapter; run `shadowft extract` and graft its folder with --delta")
    before = open_checkpoint(base)
    difference = Difference(before, open_checkpoint(found.weights), unrelated, standing=ignore)
    found.require_start(before)
    return difference
