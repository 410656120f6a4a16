"""The result of a training and the record of its starting model, as `extract` and one-pass grafts read them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shadowft_core.delta.adapter import ADAPTER_CONFIG
from shadowft_core.delta.base import sampled
from shadowft_core.delta.difference import Difference
from shadowft_core.delta.found import find_weights
from shadowft_core.delta.told import Told, read_told
from shadowft_core.delta.trainer import TrainRecord
from shadowft_core.errors import AdapterError, ShadowError, WrongBaseError, say
from shadowft_core.files import read_json_object, read_record
from shadowft_core.files.record import check_record
from shadowft_core.weights import Checkpoint, open_checkpoint
from shadowft_core.weights.settings import PairFields

NEARER = 0.5


class Tuned(NamedTuple):
    """A folder made by `train` (adapter/ or model/), a PEFT adapter folder or a checkpoint folder."""

    weights: Path
    """the adapter or the checkpoint"""
    record: Path
    train: dict[str, Any] | None
    """content of the record, if there is one"""
    told: Told
    """what the files of another trainer tell"""

    @property
    def adapter(self) -> bool:
        return (self.weights / ADAPTER_CONFIG).is_file()

    @property
    def trainer(self) -> dict[str, Any] | None:
        """What the files say about a training by another trainer; None for one by `train`."""
        if self.train is not None and "settings" in self.train:
            return None
        if self.train is not None and isinstance(recorded := self.train.get("trainer"), dict):
            return recorded
        return self.told.trainer

    def require_named(self, base: Checkpoint) -> None:
        """Raise WrongBaseError if the files name another starting model than `base`.

        A folder is compared by a sample of its weights. A name on a hub says nothing about a folder, unless pair.json
        beside `base` has it as the other model of the pair. What could not be compared is printed.
        """
        name, file = self.told.start, self.told.named_in
        if not name or (self.train or {}).get("model_digest"):  # the record says more: `require_start`
            return
        place = Path(name)
        if place.is_dir():
            reason = _other_weights(base, place)
            remedy = f"pass --base {place}, or correct the name in {file.name} if that folder was replaced since"
        else:
            reason, remedy = _other_of_pair(base, name), "pass the model that was tuned"
        if reason:
            raise WrongBaseError(f"{file}: names {name} as the starting model, but {reason}; {remedy}")

    def require_nearest(self, base: Checkpoint, after: Checkpoint) -> None:
        """Raise WrongBaseError if a whole model was evidently tuned from the other model of the pair.

        If `base` is one of the two folders of `fetch`, their distances to the tuned model are compared on a sample of
        every tensor. A training moves a model far less than the two are apart; if the other one is nearer by half, and
        no record says what was tuned, it is the one that was.
        """
        role = base.path.name
        other = base.path.parent / {"base": "instruct", "instruct": "base"}.get(role, "")
        known = (self.train or {}).get("model_digest")
        if known or other == base.path.parent or not (other.is_dir() and (base.path.parent / "pair.json").is_file()):
            return
        near, far = _distances(after, base, open_checkpoint(other))
        if far < NEARER * near:
            raise WrongBaseError(
                f"{after.path}: is nearer to {other} (distance {far:.3g} on a sample of the weights) than to "
                f"{base.path} ({near:.3g}), so it was tuned from that; tune the {role.title()}, or pass --base {other}"
            )

    def require_start(self, base: Checkpoint) -> None:
        """Raise WrongBaseError when, according to the record, training started from another model than `base`."""
        digest = base.digest()
        if self.train is not None and (start := self.train.get("model_digest", digest)) != digest:
            raise WrongBaseError(
                f"{self.record}: was tuned from {start}, but {base.path} is {digest}; pass the model it was tuned from"
            )


def read_tuned(folder: Path) -> Tuned:
    """Find the result of a training in a folder, and read what its files tell of the training.

    Raises what `find_weights` raises, CheckpointError when train.json is damaged.
    """
    weights, record = find_weights(folder), folder / "train.json"
    train = read_json_object(record) if record.is_file() else None
    if train is not None:
        check_record(train, TrainRecord, record, "remove the file if `train` did not write it, or train again")
    return Tuned(weights, record, train, read_told(folder, weights, train))


def open_difference(base: Path, tuned: Path, unrelated: bool = False, ignore: Sequence[str] = ()) -> Difference:
    """The difference of a checkpoint folder and a model tuned from it.

    `ignore` are patterns of tensors that only one side has. They need not match here: they may be meant for the
    Instruct.

    Raises AdapterError for an adapter, DeltaError, WrongBaseError when its files name another model, CheckpointError
    for unusable folders, and what `Difference` raises.
    """
    found = read_tuned(tuned)
    if found.adapter:
        raise AdapterError(f"{found.weights}: is an adapter; run `shadowft extract` and graft its folder with --delta")
    before = open_checkpoint(base)
    found.require_named(before)
    after = open_checkpoint(found.weights)
    found.require_nearest(before, after)
    difference = Difference(before, after, unrelated, standing=ignore)
    found.require_start(before)
    difference.trainer = found.trainer
    return difference


def _distances(tuned: Checkpoint, *models: Checkpoint) -> list[float]:
    """The distance of a tuned model to each of the models, over a sample of the tensors that all of them have."""
    samples = [sampled(one) for one in (tuned, *models)]
    names = set.intersection(*(set(sample) for sample in samples))
    shared = [n for n in sorted(names) if len({one.info(n).shape for one in (tuned, *models)}) == 1]
    squares = [
        sum(float(np.sum((samples[0][n].astype(np.float64) - other[n].astype(np.float64)) ** 2)) for n in shared)
        for other in samples[1:]
    ]
    return [math.sqrt(square) for square in squares]


def _other_weights(base: Checkpoint, place: Path) -> str | None:
    """Why the model in a folder is another one than `base`; None if nothing shows it.

    Two models are the same if a sample of every tensor is equal, also after rounding to the narrower dtype.
    """
    if place.samefile(base.path):
        return None
    try:
        named = open_checkpoint(place)
    except ShadowError as error:
        say(f"extract: the starting model was not compared with {base.path}: {error}")
        return None
    if named.config.get("quantization_config"):  # QLoRA: the adapter fits the model before quantisation
        say(f"extract: {place} is quantised and was not compared with {base.path}")
        return None
    one, other = sampled(base), sampled(named)
    for name in sorted(one.keys() & other.keys()):
        if base.info(name).shape == named.info(name).shape and not _same(one[name], other[name]):
            return f"tensor {name} differs there from that of {base.path}"
    return None if one.keys() & other.keys() else f"it has no tensor of {base.path}"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    narrow = min((one.dtype, other.dtype), key=lambda dtype: dtype.itemsize)
    return bool(np.array_equal(one.astype(narrow).astype(np.float32), other.astype(narrow).astype(np.float32)))


def _other_of_pair(base: Checkpoint, name: str) -> str | None:
    """Why a name on a hub is that of the other model of the pair; None if nothing shows it."""
    file, role = base.path.parent / "pair.json", base.path.name
    other = {"base": "instruct", "instruct": "base"}.get(role)
    if other is None or not file.is_file():
        return None
    pair = read_record(file, PairFields, "run fetch again")
    refs = {"base": pair.base.ref or "", "instruct": pair.instruct.ref or ""}
    names = {side: ref.removeprefix("hf:").partition("@")[0].lower() for side, ref in refs.items()}
    if name.lower() == names[other] != names[role]:
        return f"{base.path} is {refs[role]}, the {role.title()} of the pair, and that is its {other.title()}"
    return None
