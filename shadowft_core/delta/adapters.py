"""What a PEFT LoRA adapter does to each tensor of its Base. Every tensor of the file is used or refused by name."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from shadowft_core.checkpoint import FLOATS, Checkpoint, open_safetensors
from shadowft_core.delta.experts import fused_name, split_experts
from shadowft_core.delta.initial import without_initial
from shadowft_core.delta.lora import Factors
from shadowft_core.delta.merge import Change
from shadowft_core.delta.settings import Settings, matches
from shadowft_core.errors import AdapterError, NotFinite, Quantised, ShapeMismatch

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = {  # of the names PEFT gives, with what they hold; the first group is the module
    r"(.+)\.lora_A\.weight": "A",
    r"(.+)\.lora_B\.weight": "B",
    r"(.+)\.lora_B\.bias": "shift",
    r"(.+)\.lora_embedding_A": "embedding_A",
    r"(.+)\.lora_embedding_B": "embedding_B",
    r"(.+)\.lora_magnitude_vector(?:\.weight)?": "magnitude",
    r"(.+)\.token_adapter\.trainable_tokens_delta": "rows",
}


class Adapter:
    """An adapter folder, understood against its Base: `changes` by tensor name of the Base."""

    def __init__(self, before: Checkpoint, source: Path) -> None:
        self.before, self.source = before, source
        self.settings = Settings(source / ADAPTER_CONFIG)
        if not (source / ADAPTER_WEIGHTS).is_file():
            raise AdapterError(f"{source}: no {ADAPTER_WEIGHTS}; save the adapter with safe_serialization")
        self.weights = open_safetensors(source / ADAPTER_WEIGHTS)
        self.read_again = lru_cache(8)(self.read)  # for tensors of which every expert takes a part
        self._require_float_base()
        self._modules: dict[str, dict[str, str]] = {}
        self.changes: dict[str, Change] = {}
        self._sort_keys()
        for number, (module, keys) in enumerate(sorted(self._modules.items()), 1):
            self._understand(module, keys)
            if self.settings.initial and number % 10 == 0:  # a decomposition each
                print(f"extract: {self.settings.initial}, module {number}/{len(self._modules)}", file=sys.stderr)
        self._require_complete()
        self._merge_tied()

    def read(self, key: str) -> np.ndarray:
        """One tensor of the file, float32. Raises Quantised, NotFinite."""
        info = self.weights.info(key)
        if info.dtype not in FLOATS:
            raise Quantised(f"{info.file}: tensor {key} is {info.dtype}, one of {', '.join(FLOATS)} is wanted")
        array = self.weights.read(key).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise NotFinite(f"{info.file}: tensor {key} holds NaN or infinity; the training diverged")
        return array

    def home(self, name: str) -> str:
        """The tensor of the Base that a name stands for: a tied head is the embedding."""
        return self.before.home(name)

    def stored(self, name: str) -> str:
        """The name on disk of a parameter of the loaded model."""
        old = name.replace(".mlp.", ".block_sparse_moe.")  # Mixtral keeps its old names on disk
        return old if name not in self.before and old in self.before else name

    def _require_float_base(self) -> None:
        if quantised := self.before.config.get("quantization_config"):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise Quantised(
                f"{self.before.path}: config.json says it is quantised ({method}); pass the dequantised checkpoint "
                "that the training saw, or for plain LoRA the float one it was quantised from"
            )

    def _sort_keys(self) -> None:
        for key in self.weights.names:
            if not key.startswith(_PREFIX):
                raise AdapterError(f"{self._file}: tensor {key} does not begin with {_PREFIX}; save it with PEFT")
            name = key.removeprefix(_PREFIX)
            found = next(((m[1], part) for s, part in _SUFFIXES.items() if (m := re.fullmatch(s, name))), None)
            if found is not None:
                module, part = found
                self._modules.setdefault(module, {})[part] = key
                continue
            name = self.stored(
                name.replace(".base_layer.", ".")
            )  # a copy of the Base's, or what was trained as a whole
            self._require_known(name, key)
            wanted, given = self.before.info(self.home(name)).shape, self.weights.info(key).shape
            if wanted != given:
                raise ShapeMismatch(
                    f"{self._file}: tensor {key} is {given}, {self.before.path} has {wanted}; "
                    "pass the Base it was trained on, resized as it was then"
                )
            if self._differs(name, key):
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
                f"{self._file}: {module} has only factor {only}; the file is incomplete, save the adapter again"
            )
        if self.settings.dora != ("magnitude" in keys):
            raise AdapterError(
                f"{self._file}: use_dora={self.settings.dora}, yet {module} has "
                f"{'a' if 'magnitude' in keys else 'no'} lora_magnitude_vector; save the adapter again"
            )
        if self.settings.lora_bias != ("shift" in keys):
            raise AdapterError(
                f"{self._file}: lora_bias={self.settings.lora_bias}, yet {module} has "
                f"{'a' if 'shift' in keys else 'no'} lora_B.bias; save the adapter again"
            )
        name = self.stored(f"{module}.weight")
        if self.home(name) not in self.before:
            for expert_name, change in split_experts(self, module, keys).items():
                self._put(expert_name, change)
            return
        self.require_float(name)
        embedding = "embedding_A" in keys
        swapped = embedding or self.settings.transposed
        a, b = (keys[f"embedding_{f}"] if embedding else keys[f] for f in "AB")
        parameter = self.settings.targets_parameter(f"{module}.weight")
        tied = self.settings.tied_training and self.home(name) != name  # then PEFT adapts the head with its embedding
        if not (parameter or tied or self.settings.targets(module)):
            raise AdapterError(
                f"{self._file}: {module} has factors, {ADAPTER_CONFIG} does not target it; save it again"
            )
        rank, scaling = self.settings.rank_and_scaling(f"{module}.weight" if parameter else module)
        shape, found = self.before.info(self.home(name)).shape, [self.weights.info(key).shape for key in (a, b)]
        rows, columns = shape[::-1] if swapped and len(shape) == 2 else (shape[0], shape[-1])
        if found != [(rank, columns), (rows, rank)] or len(shape) != 2:
            raise AdapterError(
                f"{self._file}: factors of {module} are {found[1]} x {found[0]}, rank {rank} and the tensor want "
                f"{(rows, rank)} x {(rank, columns)}; pass the model it was trained on"
            )
        left, right = (a, b) if swapped else (b, a)
        made = Factors(rank, scaling, self._reader(left, swapped), self._reader(right, swapped))
        if self.settings.initial and embedding:
            raise AdapterError(f"{self._file}: {module} is an embedding, which {self.settings.initial} does not adapt")
        if self.settings.initial:
            made = without_initial(self.before, self.home(name), made, self.settings, swapped)
        self._put(name, Change(factors=made, magnitude=keys.get("magnitude"), outputs_are_columns=swapped))
        if "shift" in keys:
            self._require_known(f"{module}.bias", keys["shift"])
            self._put(f"{module}.bias", Change(shift=keys["shift"], shift_scaling=scaling))

    def _reader(self, key: str, swapped: bool) -> Callable[[], np.ndarray]:
        return lambda: self.read(key).T if swapped else self.read(key)

    def _understand_rows(self, module: str, key: str) -> None:
        self._require_known(f"{module}.weight", key)
        rows = self.settings.token_rows
        indices = next((rows[pattern] for pattern in rows if matches([pattern], module)), [])
        shape = self.before.info(self.home(f"{module}.weight")).shape
        wrong = sorted({i for i in indices if not 0 <= i < shape[0] or indices.count(i) > 1})
        if wrong or self.weights.info(key).shape != (len(indices), *shape[1:]):
            raise AdapterError(
                f"{self._file}: tensor {key} is {self.weights.info(key).shape}, trainable_token_indices names "
                f"{len(indices)} rows of {shape}{f', {wrong[0]} twice or outside' if wrong else ''}; save it again"
            )
        self._put(f"{module}.weight", Change(rows=key, indices=tuple(indices)))

    def _put(self, name: str, change: Change) -> None:
        """Add what one more tensor of the file says about a parameter."""
        held = self.changes.get(name, Change())
        fields = {field: value for field, value in vars(change).items() if value != vars(Change())[field]}
        if twice := [field for field in fields if vars(held)[field] != vars(Change())[field]]:
            raise AdapterError(f"{self._file}: {name} has two {twice[0]}; save the adapter again")
        if (held.rows or change.rows) and (held.factors or change.factors):
            raise AdapterError(f"{self._file}: {name} has factors and trained rows; merge it (PEFT merge_and_unload)")
        self.changes[name] = replace(held, **fields)

    def _require_known(self, name: str, key: str) -> None:
        if self.home(name) not in self.before:
            raise AdapterError(
                f"{self._file}: tensor {key} adapts {name}, which {self.before.path} does not hold; "
                "pass the model it was trained on"
            )
        self.require_float(name)

    def require_float(self, name: str) -> None:
        info = self.before.info(self.home(name))
        if info.dtype not in FLOATS:
            raise Quantised(
                f"{info.file}: tensor {name} is {info.dtype}, one of {', '.join(FLOATS)} is wanted; pass the "
                "dequantised checkpoint"
            )

    def _differs(self, name: str, key: str) -> bool:
        pairs = zip(self.before.chunks(self.home(name), 1 << 17), self.weights.chunks(key, 1 << 17), strict=True)
        return any(not np.array_equal(x.astype(np.float32), y.astype(np.float32)) for (_, x), (_, y) in pairs)

    def _require_complete(self) -> None:
        """Every module the config names must have its tensors in the file."""
        settings, adapted = self.settings, {self.home(name) for name in self.changes}
        given = {self.stored(key.removeprefix(_PREFIX).replace(".base_layer.", ".")) for key in self.weights.names}
        for name in self.before.names:
            module, _, kind = name.rpartition(".")
            matrix = kind == "weight" and len(self.before.info(name).shape) == 2
            targeted = (matrix and settings.targets(module)) or settings.targets_parameter(fused_name(name))
            if targeted and self.home(name) not in adapted:
                raise AdapterError(
                    f"{self._file}: {module} is targeted but has no factors; the file is incomplete, save it again"
                )
            biased = kind == "bias" and (
                settings.bias == "all" or (settings.bias.endswith("_only") and module in self._modules)
            )
            if name not in given and (biased or settings.saves(module)):
                raise AdapterError(
                    f"{self._file}: {name} was trained, says {ADAPTER_CONFIG}, but is missing; save the adapter again"
                )
        trained = [module for module, keys in self._modules.items() if "rows" in keys]
        tied = [alias.removesuffix(".weight") for alias in self.before.ties]
        for pattern in settings.token_rows:
            if not any(matches([pattern], module) for module in [*trained, *tied]):
                raise AdapterError(f"{self._file}: the trained rows of {pattern} are missing; save the adapter again")

    def _merge_tied(self) -> None:
        """One tensor serves as embedding and head: both must have learnt the same, or no checkpoint can hold them."""
        for alias, home in self.before.ties.items():
            if not {alias, home} & set(self.changes):
                continue
            head, embedding = (self.changes.pop(name, Change()) for name in (alias, home))
            alone = head == Change() and embedding == Change(rows=embedding.rows, indices=embedding.indices)
            if not alone and not self._same(head, embedding):  # PEFT ties trained rows by itself
                raise AdapterError(
                    f"{self._file}: {self.before.path} ties {alias} to {home}, the adapter trained them apart; "
                    "train with ensure_weight_tying=True, or merge it into an untied Base"
                )
            self.changes[home] = embedding

    def _same(self, head: Change, embedding: Change) -> bool:
        def arrays(change: Change) -> list[np.ndarray]:
            pair = change.factors
            factors = [] if pair is None else [np.array(pair.scaling), pair.left(), pair.right()]
            return [*factors, *(self.read(key) for key in (change.replaced, change.magnitude) if key)]

        ours, theirs = arrays(head), arrays(embedding)
        return len(ours) == len(theirs) > 0 and all(map(np.array_equal, ours, theirs))

    @property
    def _file(self) -> Path:
        return self.source / ADAPTER_WEIGHTS
