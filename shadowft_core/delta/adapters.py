"""What a PEFT LoRA adapter does to each tensor of its Base. Every tensor of the file is used or refused by name.

An adapter names modules as the loaded model does, or, when an older transformers trained it, as the files do.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from shadowft_core.delta.complete import require_complete
from shadowft_core.delta.experts import Stack, expert_changes, find_stack, shown_orientations
from shadowft_core.delta.initial import without_initial
from shadowft_core.delta.layout import GATHER, WRAPPERS
from shadowft_core.delta.lora import Factors
from shadowft_core.delta.merge import Change
from shadowft_core.delta.settings import CONVERT, EMBEDDING, MERGE, Settings, matches
from shadowft_core.delta.ties import merge_tied
from shadowft_core.errors import AdapterError, NotFiniteError, QuantisedError, ShapeMismatchError, WrongBaseError
from shadowft_core.weights import FLOATS, Checkpoint, Ignored, open_safetensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_SUFFIXES = {  # of the names PEFT gives, with what they hold; the first group is the module
    r"(.+)\.lora_A\.weight": "A",
    r"(.+)\.lora_B\.weight": "B",
    r"(.+)\.lora_B\.bias": "shift",
    r"(.+)\.lora_embedding_A": "embedding_A",
    r"(.+)\.lora_embedding_B": "embedding_B",
    r"(.+)\.lora_magnitude_vector(?:\.weight)?": "magnitude",
    r"(.+)\.token_adapter\.trainable_tokens_delta": "rows",
}
_NAMED = re.compile(  # as in a state dict of the training, which still has the adapter's name
    r".+\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta|modules_to_save)\."
    r"(?!weight$|bias$)([^.]+)(?:\.weight|\.bias)?"
)
_COPY = re.compile(r"\.(?:base_layer|modules_to_save|original_module)\.")  # within what PEFT saves of a whole module
_OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")


class Adapter:
    """An adapter folder, understood against its Base: `changes` by tensor name of the Base."""

    def __init__(self, before: Checkpoint, source: Path, ignore: Sequence[str] = ()) -> None:
        self.before, self.source, self.ignore = before, source, ignore
        self.ignored: Ignored = {}
        """tensors of the Base that the adapter may ignore"""
        self.file = source / ADAPTER_WEIGHTS
        self.settings = Settings(source / ADAPTER_CONFIG, self._is_biased())
        if not self.file.is_file():
            raise AdapterError(f"{source}: no {ADAPTER_WEIGHTS}; save the adapter with safe_serialization")
        self.weights = open_safetensors(self.file)
        self.read_again = lru_cache(8)(self.read)  # for tensors of which every expert takes a part
        self.stack: Callable[[str], Stack | None] = lru_cache(None)(lambda parameter: find_stack(self, parameter))
        self._require_float_base()
        self.modules: dict[str, dict[str, str]] = {}
        """by module, the keys of the file that adapt it, by part"""
        self.given: dict[str, str] = {}
        """by tensor of the Base that the file holds whole, changed or not: its key"""
        self.changes: dict[str, Change] = {}
        self._sort_keys()
        for number, (module, keys) in enumerate(sorted(self.modules.items()), 1):
            self._understand(module, keys)
            if self.settings.initial and number % 10 == 0:  # a decomposition each
                print(f"extract: {self.settings.initial}, module {number}/{len(self.modules)}", file=sys.stderr)
        require_complete(self)
        merge_tied(self)

    def read(self, key: str) -> np.ndarray:
        """One tensor of the file, float32. Raises QuantisedError, NotFiniteError."""
        info = self.weights.info(key)
        if info.dtype not in FLOATS:
            raise QuantisedError(f"{info.file}: tensor {key} is {info.dtype}, one of {', '.join(FLOATS)} is wanted")
        array = self.weights.read(key).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise NotFiniteError(f"{info.file}: tensor {key} holds NaN or infinity; the training diverged")
        return array

    def home(self, name: str) -> str:
        """The tensor of the Base that a name stands for: a tied head is the embedding."""
        return self.before.home(name)

    def stored(self, name: str) -> str:
        """The name in files of a parameter of the loaded model."""
        return self.before.family.in_files(name)

    def is_fused(self, module: str) -> bool:
        """Whether a module's factors adapt fused experts or another parameter, not the module's own weight."""
        parameter = f"{module}.weight"
        if (name := self.home(self.stored(parameter))) not in self.before:
            return True
        return len(self.before.info(name).shape) == 3 and self.settings.targets_parameter(parameter)

    @cached_property
    def shown_experts(self) -> frozenset[bool]:
        return frozenset(shown_orientations(self))

    def _is_biased(self) -> bool:
        """Whether every layer that gets a bias from the file (BEFT) has one in the Base."""
        names = open_safetensors(self.file).names if self.file.is_file() else []
        given = [n.removeprefix(PREFIX).removesuffix(".beft_bias") for n in names if n.endswith(".beft_bias")]
        return all(self.stored(f"{module}.bias") in self.before for module in given)

    def _require_float_base(self) -> None:
        if quantised := self.before.config.get("quantization_config"):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise QuantisedError(
                f"{self.before.path}: config.json says it is quantised ({method}); pass the dequantised checkpoint "
                "that the training saw, or for plain LoRA the float one it was quantised from"
            )

    def _sort_keys(self) -> None:
        for key in self.weights.names:
            wrapper = "_orig_mod" if "._orig_mod." in f".{key}" else key.partition(".")[0]
            if wrapper in WRAPPERS:
                raise AdapterError(
                    f"{self.file}: tensor {key}: {WRAPPERS[wrapper]}, or take {wrapper}. out of the names in the file"
                )
            if 0 in self.weights.info(key).shape:
                raise AdapterError(f"{self.file}: tensor {key} is empty, as ZeRO-3 leaves it; {GATHER}")
            if not key.startswith(PREFIX):
                raise AdapterError(f"{self.file}: tensor {key} does not begin with {PREFIX}; save it with PEFT")
            name = key.removeprefix(PREFIX)
            found = next(((m[1], part) for s, part in _SUFFIXES.items() if (m := re.fullmatch(s, name))), None)
            if found is not None:
                module, part = found
                self.modules.setdefault(module, {})[part] = key
            elif named := _NAMED.fullmatch(name):
                raise AdapterError(
                    f"{self.file}: tensor {key} contains the adapter's name, {named[1]}, as in a state dict of "
                    "the training; save the adapter with PEFT's save_pretrained, which leaves it out"
                )
            else:  # a copy of the Base's tensor, or one trained as a whole
                self._understand_whole(_COPY.sub(".", name), key)

    def _understand_whole(self, parameter: str, key: str) -> None:
        name = self.stored(parameter)
        stack = self.stack(parameter) if name not in self.before or parameter.count(".experts.") else None
        if stack and (stack.transposed or stack.parts):
            raise self.converted(parameter)
        self._require_known(parameter, key)
        wanted, given = self.before.info(self.home(name)).shape, self.weights.info(key).shape
        if wanted != given:
            raise ShapeMismatchError(
                f"{self.file}: tensor {key} is {given}, {self.before.path} has {wanted}; "
                "pass the Base it was trained on, resized as in the training"
            )
        differs = self._differs(name, key)
        if ".original_module." in key:  # PEFT's copy of what the training found
            if differs:
                raise WrongBaseError(
                    f"{self.file}: tensor {key} is what {parameter} was before the training, {self.before.path} has "
                    "another; pass the model it was trained on"
                )
            return
        if (other := self.given.setdefault(name, key)) != key:
            if not np.array_equal(self.read(other), self.read(key)):
                raise AdapterError(f"{self.file}: tensors {other} and {key} are one and differ; save the adapter again")
            return
        if differs:
            self._put(name, Change(replaced=key))

    def _understand(self, module: str, keys: dict[str, str]) -> None:
        """Turn the tensors of one adapted module into changes."""
        factors = {part: keys[part] for part in ("A", "B", "embedding_A", "embedding_B") if part in keys}
        if "rows" in keys:
            self._understand_rows(module, keys["rows"])
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
        name = self.stored(f"{module}.weight")
        if self.before.family.is_converted(f"{module}.weight"):
            raise self.converted(f"{module}.weight")
        if not self.is_fused(module):
            self._understand_matrix(module, name, keys)
        else:
            for expert_name, change in expert_changes(self, module, keys).items():
                self._put(expert_name, change)

    def _understand_matrix(self, module: str, name: str, keys: dict[str, str]) -> None:
        self.require_float(name)
        embedding = "embedding_A" in keys
        a, b = (keys[f"embedding_{f}"] if embedding else keys[f] for f in "AB")
        parameter = self.settings.targets_parameter(f"{module}.weight")
        tied = self.settings.tied_training and self.home(name) != name  # then PEFT adapts the head with its embedding
        if not (parameter or tied or self.settings.targets(module)):
            raise AdapterError(f"{self.file}: {module} has factors, {ADAPTER_CONFIG} does not target it; save it again")
        shape, found = self.before.info(self.home(name)).shape, [self.weights.info(key).shape for key in (a, b)]
        rank, scaling = self.settings.rank_and_scaling(f"{module}.weight" if parameter else module, *found[0][:1])
        if len(shape) != 2:
            kind = self.before.family.kind(name) or "other"
            raise AdapterError(f"{self.file}: adapts {module}, which is not a matrix but {shape} ({kind}); {MERGE}")
        swapped = embedding or (not parameter and self._is_conv1d(name, found))
        initial = self.settings.initial
        if initial and embedding:
            raise AdapterError(f"{self.file}: {module} is an embedding, which {initial} does not adapt")
        if initial == "olora" and swapped:  # PEFT decomposes it as if it were (outputs, inputs)
            raise AdapterError(f"{self.file}: {module} is a Conv1D, which olora initialises differently; {CONVERT}")
        rows, columns = shape[::-1] if swapped else shape
        if found != [(rank, columns), (rows, rank)]:
            raise AdapterError(
                f"{self.file}: factors of {module} are {found[1]} x {found[0]}, rank {rank} and the tensor want "
                f"{(rows, rank)} x {(rank, columns)}; pass the model it was trained on"
            )
        left, right = (a, b) if swapped else (b, a)
        made = Factors(rank, scaling, self._reader(left, swapped), self._reader(right, swapped))
        held = self.changes.get(name)  # an embedding or head that PEFT saved whole is what the Base became: W - P
        if initial and not (held and held.replaced):
            made = without_initial(self.before, self.home(name), made, self.settings, swapped)
        self._put(name, Change(factors=made, magnitude=keys.get("magnitude"), outputs_are_columns=swapped))
        if "shift" in keys:
            if self.stored(f"{module}.bias") not in self.before:
                raise AdapterError(
                    f"{self.file}: tensor {keys['shift']} is the bias of a layer that has none in {self.before.path}, "
                    "so no tensor can hold it; train without lora_bias"
                )
            self._require_known(f"{module}.bias", keys["shift"])
            self._put(self.stored(f"{module}.bias"), Change(shift=keys["shift"], shift_scaling=scaling))

    def _is_conv1d(self, name: str, factors: list[tuple[int, ...]]) -> bool:
        """Whether a matrix is stored (inputs, outputs): by its kind, or by its shape where the kind is unknown."""
        family, shape = self.before.family, self.before.info(self.home(name)).shape
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
        """Whether the shapes show a layer whose weight is stored (inputs, outputs)."""
        for module, keys in self.modules.items():
            name = self.home(self.stored(f"{module}.weight"))
            if {"A", "B"} <= set(keys) and name in self.before:
                factors = [self.weights.info(keys[factor]).shape for factor in "AB"]
                if _outputs_are_columns(self.before.info(name).shape, factors):
                    return True
        return False

    def _reader(self, key: str, swapped: bool) -> Callable[[], np.ndarray]:
        return lambda: self.read(key).T if swapped else self.read(key)

    def _understand_rows(self, module: str, key: str) -> None:
        self._require_known(f"{module}.weight", key)
        name = self.stored(f"{module}.weight")
        indices = next((ids for p, ids in self.settings.token_rows.items() if self.has_rows(p, module)), [])
        shape = self.before.info(self.home(name)).shape
        wrong = sorted({i for i in indices if not 0 <= i < shape[0] or indices.count(i) > 1})
        if wrong or self.weights.info(key).shape != (len(indices), *shape[1:]):
            raise AdapterError(
                f"{self.file}: tensor {key} is {self.weights.info(key).shape}, trainable_token_indices names "
                f"{len(indices)} rows of {shape}{f', {wrong[0]} twice or outside' if wrong else ''}; save it again"
            )
        self._put(name, Change(rows=key, indices=tuple(indices)))

    def has_rows(self, pattern: str, module: str) -> bool:
        """Whether a name in trainable_token_indices means this module."""
        if pattern == EMBEDDING:
            return self.before.family.is_embedding(self.stored(f"{module}.weight"))
        return matches([pattern], module)

    def _put(self, name: str, change: Change) -> None:
        """Add what one more tensor of the file says about a parameter."""
        held = self.changes.get(name, Change())
        fields = {field: value for field, value in vars(change).items() if value != vars(Change())[field]}
        if twice := [field for field in fields if vars(held)[field] != vars(Change())[field]]:
            raise AdapterError(f"{self.file}: {name} has two {twice[0]}; save the adapter again")
        if (held.rows or change.rows) and (held.factors or change.factors):
            raise AdapterError(f"{self.file}: {name} has factors and trained rows; merge it (PEFT merge_and_unload)")
        self.changes[name] = replace(held, **fields)

    def _require_known(self, parameter: str, key: str) -> None:
        name = self.stored(parameter)
        if self.before.family.is_converted(parameter):
            raise self.converted(parameter)
        if self.home(name) not in self.before:
            if self.settings.task in _OTHER_TASKS:
                raise AdapterError(
                    f"{self.file}: tensor {key} belongs to the head of a {self.settings.task} model, which a language "
                    "model lacks; train with task_type CAUSAL_LM, or remove the tensor and its modules_to_save"
                )
            raise AdapterError(
                f"{self.file}: tensor {key} is {parameter}, which {self.before.path} does not hold; pass the model it "
                "was trained on; a tensor added for the training cannot be part of a delta"
            )
        self.require_float(name)

    def converted(self, parameter: str) -> AdapterError:
        return AdapterError(
            f"{self.file}: {parameter} is stored in {self.before.path} in a layout that only transformers can "
            f"convert; {MERGE}"
        )

    def require_float(self, name: str) -> None:
        info = self.before.info(self.home(name))
        if info.dtype not in FLOATS:
            raise QuantisedError(
                f"{info.file}: tensor {name} is {info.dtype}, one of {', '.join(FLOATS)} is wanted; pass the "
                "dequantised checkpoint"
            )

    def _differs(self, name: str, key: str) -> bool:
        pairs = zip(self.before.chunks(self.home(name), 1 << 17), self.weights.chunks(key, 1 << 17), strict=True)
        return any(not np.array_equal(x.astype(np.float32), y.astype(np.float32)) for (_, x), (_, y) in pairs)


def _outputs_are_columns(shape: tuple[int, ...], factors: list[tuple[int, ...]]) -> bool:
    """Whether A, (rank, inputs), and B, (outputs, rank), fit a tensor that is not square only as (inputs, outputs)."""
    (*_, inputs), (outputs, *_) = factors
    return shape[0] != shape[1] and (inputs, outputs) == shape
