"""Turns the tensors of a PEFT LoRA adapter into changes of its Base. Uses every tensor, or refuses it by name.

An adapter names modules as in the loaded model or, if it was trained with an older transformers, as in the files.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from shadowft_core.delta.adapter import ADAPTER_CONFIG, Adapter
from shadowft_core.delta.change import Change
from shadowft_core.delta.complete import require_complete
from shadowft_core.delta.experts import Experts
from shadowft_core.delta.factors import Factors
from shadowft_core.delta.initial import without_initial
from shadowft_core.delta.settings import CONVERT, MERGE
from shadowft_core.delta.ties import merge_tied
from shadowft_core.errors import AdapterError, ShapeMismatchError, WrongBaseError, say
from shadowft_core.weights import Checkpoint

_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


def open_adapter(before: Checkpoint, source: Path, ignore: Sequence[str] = ()) -> Adapter:
    """Open an adapter folder and fill its `changes`, by tensor name of the Base `before`.

    `ignore` are glob patterns of tensors of the Base that the adapter may lack although its config targets them.
    Raises AdapterError, QuantisedError, ShapeMismatchError, WrongBaseError, UnrelatedError, NotFiniteError, InputError
    for a pattern that matches an adapted tensor.
    """
    adapter = Adapter(before, source, ignore)
    reading = _Reading(adapter)
    for key, parameter in adapter.whole.items():
        reading.add_whole(parameter, key)
    for number, (module, keys) in enumerate(sorted(adapter.modules.items()), 1):
        reading.add_module(module, keys)
        if adapter.settings.initial and number % 10 == 0:  # one decomposition per module
            say(f"extract: {adapter.settings.initial}, module {number}/{len(adapter.modules)}")
    require_complete(adapter)
    merge_tied(adapter)
    return adapter


class _Reading:
    """Fills an adapter's `changes`, module by module."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.before, self.file = adapter, adapter.before, adapter.file
        self.settings, self.weights = adapter.settings, adapter.weights
        self.experts = Experts(adapter)

    def add_whole(self, parameter: str, key: str) -> None:
        """Add a tensor that the file has as a whole: a copy of the Base's, or one trained as a whole."""
        name = self.adapter.stored(parameter)
        several = name not in self.before or parameter.count(".experts.")
        stack = self.experts.stack(parameter) if several else None
        if stack and (stack.transposed or stack.parts):
            raise self.adapter.converted(parameter)
        self._require_known(parameter, key)
        expected, given = self.before.info(self.adapter.home(name)).shape, self.weights.info(key).shape
        if expected != given:
            raise ShapeMismatchError(
                f"{self.file}: tensor {key} has shape {given}, {self.before.path} has {expected}; "
                "pass the Base it was trained on, resized as in the training"
            )
        differs = self._differs(name, key)
        if ".original_module." in key:  # PEFT's copy of the tensor before the training
            if differs:
                raise WrongBaseError(
                    f"{self.file}: tensor {key} is {parameter} before the training and differs from that of "
                    f"{self.before.path}; pass the model the adapter was trained on"
                )
            return
        if (other := self.adapter.given.setdefault(name, key)) != key:
            if not np.array_equal(self.adapter.read(other), self.adapter.read(key)):
                raise AdapterError(
                    f"{self.file}: tensors {other} and {key} are copies of one tensor and differ; save the adapter "
                    "again"
                )
            return
        if differs:
            self.adapter.add(name, Change(replaced=key))

    def add_module(self, module: str, keys: dict[str, str]) -> None:
        """Turn the tensors of one adapted module into changes."""
        factors = {part: keys[part] for part in ("A", "B", "embedding_A", "embedding_B") if part in keys}
        if "rows" in keys:
            self._add_rows(module, keys["rows"])
            if set(keys) == {"rows"}:
                return
        if set(factors) not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
            only = ", ".join(sorted(factors)) or "none"
            raise AdapterError(
                f"{self.file}: {module} has only factor {only}; the file is incomplete, save the adapter again"
            )
        if self.settings.dora != ("magnitude" in keys):
            raise AdapterError(
                f"{self.file}: use_dora={self.settings.dora}, yet {module} has "
                f"{'a' if 'magnitude' in keys else 'no'} lora_magnitude_vector; save the adapter again"
            )
        if self.settings.lora_bias != ("shift" in keys):
            raise AdapterError(
                f"{self.file}: lora_bias={self.settings.lora_bias}, yet {module} has "
                f"{'a' if 'shift' in keys else 'no'} lora_B.bias; save the adapter again"
            )
        name = self.adapter.stored(f"{module}.weight")
        if self.before.family.is_converted(f"{module}.weight"):
            raise self.adapter.converted(f"{module}.weight")
        if not self.adapter.is_fused(module):
            self._add_matrix(module, name, keys)
        else:
            for expert_name, change in self.experts.changes(module, keys).items():
                self.adapter.add(expert_name, change)

    def _add_matrix(self, module: str, name: str, keys: dict[str, str]) -> None:
        self.adapter.require_float(name)
        home = self.adapter.home(name)
        embedding = "embedding_A" in keys
        a, b = (keys[f"embedding_{f}"] if embedding else keys[f] for f in "AB")
        parameter = self.settings.targets_parameter(f"{module}.weight")
        tied = self.settings.tied_training and home != name  # then PEFT adapts the head with its embedding
        if not (parameter or tied or self.settings.targets(module)):
            raise AdapterError(
                f"{self.file}: {module} has factors, but {ADAPTER_CONFIG} does not target it; save the adapter again"
            )
        shape, held = self.before.info(home).shape, [self.weights.info(key).shape for key in (a, b)]
        rank, scaling = self.settings.rank_and_scaling(f"{module}.weight" if parameter else module, *held[0][:1])
        if len(shape) != 2:
            kind = self.before.family.kind(name) or "other"
            raise AdapterError(
                f"{self.file}: adapts {module}, which has shape {shape} and is not a matrix ({kind}); {MERGE}"
            )
        swapped = embedding or (not parameter and self._is_conv1d(name, held))
        initial = self.settings.initial
        if initial and embedding:
            raise AdapterError(f"{self.file}: {module} is an embedding, which {initial} does not adapt; {MERGE}")
        if initial and rank > min(shape):
            raise AdapterError(
                f"{self.file}: rank {rank} of {module} is above its {shape}, so it has no start; {MERGE}"
            )
        if initial == "olora" and swapped:  # PEFT decomposes it as if it were (outputs, inputs)
            raise AdapterError(f"{self.file}: {module} is a Conv1D, which olora initialises differently; {CONVERT}")
        rows, columns = shape[::-1] if swapped else shape
        if held != [(rank, columns), (rows, rank)]:
            raise AdapterError(
                f"{self.file}: factors of {module} are {held[1]} x {held[0]}, expected {(rows, rank)} x "
                f"{(rank, columns)} for rank {rank}; pass the model it was trained on"
            )
        left, right = (a, b) if swapped else (b, a)
        factors = Factors(rank, scaling, self._reader(left, swapped), self._reader(right, swapped))
        earlier = self.adapter.changes.get(name)
        if initial and not (earlier and earlier.replaced):  # PEFT saves a whole embedding or head as W - P
            factors = without_initial(self.before, home, factors, self.settings, swapped)
        change = Change(factors=factors, magnitude=keys.get("magnitude"), outputs_are_columns=swapped)
        self.adapter.add(name, change)
        if "shift" in keys:
            bias = f"{module}.bias"
            if self.adapter.stored(bias) not in self.before:
                raise AdapterError(
                    f"{self.file}: tensor {keys['shift']} is the bias of a layer that has none in {self.before.path}, "
                    "so no tensor can hold it; train without lora_bias"
                )
            self._require_known(bias, keys["shift"])
            self.adapter.add(self.adapter.stored(bias), Change(shift=keys["shift"], shift_scaling=scaling))

    def _is_conv1d(self, name: str, factors: list[tuple[int, ...]]) -> bool:
        """Whether a matrix is stored (inputs, outputs): from its kind or, if that is unknown, its shape."""
        family, shape = self.before.family, self.before.info(self.adapter.home(name)).shape
        if family.known and (kind := family.kind(name)):
            return kind == "conv1d"
        if shape[0] != shape[1]:
            return _outputs_are_columns(shape, factors)
        if self.settings.transposed or self._shows_conv1d:
            raise AdapterError(
                f"{self.file}: {name} is square, {shape}, {family.title} is not a known model family, "
                f"and other layers of the adapter have weights (inputs, outputs); {MERGE}"
            )
        return False

    @cached_property
    def _shows_conv1d(self) -> bool:
        """Whether the shapes of any adapted layer show that its weight is stored (inputs, outputs)."""
        for module, keys in self.adapter.modules.items():
            name = self.adapter.home(self.adapter.stored(f"{module}.weight"))
            if {"A", "B"} <= set(keys) and name in self.before:
                factors = [self.weights.info(keys[factor]).shape for factor in "AB"]
                if _outputs_are_columns(self.before.info(name).shape, factors):
                    return True
        return False

    def _reader(self, key: str, swapped: bool) -> Callable[[], np.ndarray]:
        read = self.adapter.read
        return lambda: read(key).T if swapped else read(key)

    def _add_rows(self, module: str, key: str) -> None:
        self._require_known(f"{module}.weight", key)
        name = self.adapter.stored(f"{module}.weight")
        indices = next((ids for p, ids in self.settings.token_rows.items() if self.adapter.has_rows(p, module)), [])
        shape = self.before.info(self.adapter.home(name)).shape
        counts = Counter(indices)
        wrong = sorted(i for i, count in counts.items() if not 0 <= i < shape[0] or count > 1)
        if wrong:
            raise AdapterError(
                f"{self.settings.path}: trainable_token_indices names token {wrong[0]!r:.40} twice or outside of the "
                f"{shape[0]} rows of {self.before.path}; pass the model it was trained on, or save it again"
            )
        if self.weights.info(key).shape != (len(indices), *shape[1:]):
            raise AdapterError(
                f"{self.file}: tensor {key} is {self.weights.info(key).shape}, trainable_token_indices names "
                f"{len(indices)} rows of {shape}; save it again"
            )
        self.adapter.add(name, Change(rows=key, indices=tuple(indices)))

    def _require_known(self, parameter: str, key: str) -> None:
        name = self.adapter.stored(parameter)
        if self.before.family.is_converted(parameter):
            raise self.adapter.converted(parameter)
        if self.adapter.home(name) not in self.before:
            if self.settings.task in _OTHER_TASKS:
                raise AdapterError(
                    f"{self.file}: tensor {key} belongs to the head of a {self.settings.task} model, which a language "
                    "model lacks; train with task_type CAUSAL_LM, or remove the tensor and its modules_to_save"
                )
            raise AdapterError(
                f"{self.file}: tensor {key} is {parameter}, which {self.before.path} lacks; pass the model it was "
                "trained on; a tensor added for the training cannot be part of a delta"
            )
        self.adapter.require_float(name)

    def _differs(self, name: str, key: str) -> bool:
        chunks = self.before.chunks(self.adapter.home(name), 1 << 17), self.weights.chunks(key, 1 << 17)
        return any(
            not np.array_equal(x.astype(np.float32), y.astype(np.float32))
            for (_, x), (_, y) in zip(*chunks, strict=True)
        )


def _outputs_are_columns(shape: tuple[int, ...], factors: list[tuple[int, ...]]) -> bool:
    """Whether A, (rank, inputs), and B, (outputs, rank), fit a non-square tensor only as (inputs, outputs)."""
    (*_, inputs), (outputs, *_) = factors
    return shape[0] != shape[1] and (inputs, outputs) == shape
