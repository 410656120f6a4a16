"""A PEFT LoRA adapter folder and its Base: settings, tensors by module, and the changes they make."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from shadowft_core.delta.change import Change
from shadowft_core.delta.layout import GATHER, WRAPPERS
from shadowft_core.delta.settings import EMBEDDING, MERGE, Settings, ends_in
from shadowft_core.errors import AdapterError, NotFiniteError, QuantisedError
from shadowft_core.weights import FLOATS, Checkpoint, Ignored, open_safetensors
from shadowft_core.weights.entries import require_own_files

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
_SUFFIXES = {  # pattern of PEFT's name, and the part that the tensor is; the first group is the module
    r"(.+)\.lora_A\.weight": "A",
    r"(.+)\.lora_B\.weight": "B",
    r"(.+)\.lora_B\.bias": "shift",
    r"(.+)\.lora_embedding_A": "embedding_A",
    r"(.+)\.lora_embedding_B": "embedding_B",
    r"(.+)\.lora_magnitude_vector(?:\.weight)?": "magnitude",
    r"(.+)\.token_adapter\.trainable_tokens_delta": "rows",
}
_NAMED = re.compile(  # names in a state dict of the training, which still contain the adapter's name
    r".+\.(?:lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|trainable_tokens_delta|modules_to_save)\."
    r"(?!weight$|bias$)([^.]+)(?:\.weight|\.bias)?"
)
_COPY = re.compile(r"\.(?:base_layer|modules_to_save|original_module)\.")  # inserted where PEFT saves a whole module


class Adapter:
    """An adapter folder and its Base. `interpret.open_adapter` fills `changes` and `given`."""

    def __init__(self, before: Checkpoint, source: Path, ignore: Sequence[str] = ()) -> None:
        """Open the files and sort the keys.

        Raises AdapterError, CheckpointError, QuantisedError for a quantised Base.
        """
        require_own_files(source, AdapterError)
        self.before, self.source, self.ignore = before, source, ignore
        self.ignored: Ignored = {}
        """tensors of the Base that the adapter may leave out"""
        self.file = source / ADAPTER_WEIGHTS
        self.settings = Settings(source / ADAPTER_CONFIG, self._is_biased())
        if not self.file.is_file():
            raise AdapterError(f"{source}: no {ADAPTER_WEIGHTS}; save the adapter with safe_serialization")
        self.weights = open_safetensors(self.file)
        self.read_again = lru_cache(8)(self.read)  # for tensors that contain a part for every expert
        self._require_float_base()
        self.modules: dict[str, dict[str, str]] = {}
        """by module, then by part: the keys of the file that adapt it"""
        self.whole: dict[str, str] = {}
        """by key of a tensor that the file has as a whole: the parameter it belongs to"""
        self.given: dict[str, str] = {}
        """by tensor of the Base that the file has as a whole, changed or not: its key"""
        self.changes: dict[str, Change] = {}
        """by tensor of the Base"""
        self._sort_keys()

    def read(self, key: str) -> np.ndarray:
        """One tensor of the file, float32. Raises QuantisedError, NotFiniteError."""
        info = self.weights.info(key)
        if info.dtype not in FLOATS:
            raise QuantisedError(
                f"{info.file}: tensor {key} is {info.dtype}, expected one of {', '.join(FLOATS)}; "
                "save the adapter as float"
            )
        array = self.weights.read(key).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise NotFiniteError(f"{info.file}: tensor {key} holds NaN or infinity; the training diverged")
        return array

    def home(self, name: str) -> str:
        """The Base's stored tensor for a name; for a tied head, the embedding."""
        return self.before.home(name)

    def stored(self, name: str) -> str:
        """The name in files of a parameter of the loaded model."""
        return self.before.family.in_files(name)

    def is_fused(self, module: str) -> bool:
        """Whether a module's factors adapt fused experts or another parameter rather than the module's weight."""
        parameter = f"{module}.weight"
        if (name := self.home(self.stored(parameter))) not in self.before:
            return True
        return len(self.before.info(name).shape) == 3 and self.settings.targets_parameter(parameter)

    def has_rows(self, pattern: str, module: str) -> bool:
        """Whether a name in trainable_token_indices matches this module."""
        if pattern == EMBEDDING:
            return self.before.family.is_embedding(self.stored(f"{module}.weight"))
        return ends_in([pattern], module)

    def add(self, name: str, change: Change) -> None:
        """Add a part of a tensor's change. Raises AdapterError if the file has that part twice."""
        held = self.changes.get(name, Change())
        fields = {field: value for field, value in vars(change).items() if value != vars(Change())[field]}
        if twice := [field for field in fields if vars(held)[field] != vars(Change())[field]]:
            raise AdapterError(f"{self.file}: {name} has two {twice[0]}; save the adapter again")
        if (held.rows or change.rows) and (held.factors or change.factors):
            raise AdapterError(f"{self.file}: {name} has factors and trained rows; merge it (PEFT merge_and_unload)")
        self.changes[name] = replace(held, **fields)

    def converted(self, parameter: str) -> AdapterError:
        """The error for a parameter whose layout in files differs from the one in memory."""
        return AdapterError(
            f"{self.file}: {parameter} is stored in {self.before.path} in a layout that only transformers can "
            f"convert; {MERGE}"
        )

    def require_float(self, name: str) -> None:
        """Raise QuantisedError unless the Base stores this tensor as a float."""
        info = self.before.info(self.home(name))
        if info.dtype not in FLOATS:
            raise QuantisedError(
                f"{info.file}: tensor {name} is {info.dtype}, expected one of {', '.join(FLOATS)}; pass the "
                "dequantised checkpoint"
            )

    def _is_biased(self) -> bool:
        """Whether every layer that gets a bias from the file (BEFT) has one in the Base."""
        names = open_safetensors(self.file).names if self.file.is_file() else []
        given = [n.removeprefix(PREFIX).removesuffix(".beft_bias") for n in names if n.endswith(".beft_bias")]
        return all(self.stored(f"{module}.bias") in self.before for module in given)

    def _require_float_base(self) -> None:
        if quantised := self.before.config.get("quantization_config"):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise QuantisedError(
                f"{self.before.path}: config.json names a quantisation ({method}); pass the dequantised checkpoint "
                "that the training used or, for plain LoRA, the float checkpoint it was quantised from"
            )

    def _sort_keys(self) -> None:
        for key in self.weights.names:
            wrapper = "_orig_mod" if "._orig_mod." in f".{key}" else key.partition(".")[0]
            if wrapper in WRAPPERS:
                raise AdapterError(
                    f"{self.file}: tensor {key}: {WRAPPERS[wrapper]}, or remove {wrapper}. from the names in the file"
                )
            if 0 in self.weights.info(key).shape:
                raise AdapterError(f"{self.file}: tensor {key} is empty, as ZeRO-3 leaves it; {GATHER}")
            if not key.startswith(PREFIX):
                raise AdapterError(f"{self.file}: tensor {key} does not begin with {PREFIX}; save it with PEFT")
            name = key.removeprefix(PREFIX)
            match = next(((m[1], part) for s, part in _SUFFIXES.items() if (m := re.fullmatch(s, name))), None)
            if match is not None:
                module, part = match
                self.modules.setdefault(module, {})[part] = key
            elif named := _NAMED.fullmatch(name):
                raise AdapterError(
                    f"{self.file}: tensor {key} contains the adapter's name, {named[1]}, as in a state dict of "
                    "the training; save the adapter with PEFT's save_pretrained, which leaves it out"
                )
            else:  # a copy of the Base's tensor, or one trained as a whole
                self.whole[key] = _COPY.sub(".", name)
