"""Exports a LoRA delta at one scale as an adapter folder that vLLM loads onto the Instruct.

Scale and scaling are multiplied into B (in float64, rounded once to float32), so that `lora_alpha / r` is 1. A server
applies the adapter unmerged and in its own dtype (`--lora-dtype`, by default the model's), so it does not round where a
graft does: only the merged export has the digest that the verdict is about.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta.factors import Factors
from shadowft_core.errors import AdapterError, say
from shadowft_core.export.rules import CONFIG, RANKS, WEIGHTS, layer_shape, lint, of_kind
from shadowft_core.files import new_folder, write_json_atomically
from shadowft_core.grafting.options import Options
from shadowft_core.grafting.plan import Source, make_plan
from shadowft_core.weights import LAYERS, Checkpoint, build_header, write_safetensors

__all__ = ["Adapter", "export_adapter", "lint", "plan_adapter"]

AS_IS = Options()
_MERGED = "use `shadowft export --for merged`"


def export_adapter(
    instruct: Path,
    deltas: Sequence[tuple[Path, float]],
    out: Path,
    options: Options = AS_IS,
    reference: str | None = None,
    max_rank: int = RANKS[-1],
) -> dict[str, Any]:
    """Write the adapter folder `out` (adapter_config.json, adapter_model.safetensors in float32); return its config.

    `options` are the graft's, except that the server chooses the dtype. `reference` names the Instruct in the config;
    by default it is the folder `instruct`. `max_rank` is the server's --max-lora-rank. Raises what `graft` raises when
    the delta does not match the Instruct, and AdapterError when it is not one LoRA delta on linear layers. Nothing is
    written then.
    """
    adapter = plan_adapter(instruct, deltas, options)
    config = adapter.write(out, reference, max_rank)
    need = next(limit for limit in RANKS if limit >= config["r"])
    say(
        f"export: {len(adapter.tensors)} modules at rank {config['r']}; serve with `vllm serve "
        f"{config['base_model_name_or_path']} --enable-lora --max-lora-rank {need} --lora-modules NAME={out}`"
    )
    return config


@dataclass(frozen=True)
class Adapter:
    """A graft that a server can apply as an adapter. Made by `plan_adapter`."""

    instruct: Checkpoint
    tensors: Mapping[str, "_Scaled"]
    """by name of the Instruct's tensor"""

    @property
    def rank(self) -> int:
        return max(tensor.factors.rank for tensor in self.tensors.values())

    def write(self, out: Path, reference: str | None = None, max_rank: int = RANKS[-1]) -> dict[str, Any]:
        """Write the folder `out` as `export_adapter` does; return its config. Raises AdapterError, DeltaError."""
        model, rank = self.instruct, self.rank
        layout: dict[str, tuple[str, tuple[int, ...]]] = {}
        keys: dict[str, tuple[str, str]] = {}
        for name in sorted(self.tensors):
            outputs, inputs = layer_shape(model, name)
            for factor, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
                key = f"base_model.model.{_module(model, name)}.lora_{factor}.weight"
                layout[key], keys[key] = ("F32", shape), (name, factor)

        def produce(key: str) -> Iterator[np.ndarray]:
            name, factor = keys[key]
            yield self.tensors[name].padded(factor, rank).reshape(-1)

        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": reference or str(model.path),
            "inference_mode": True,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": _targets(model, set(self.tensors)),
        }
        with new_folder(out) as folder:
            write_safetensors(folder / WEIGHTS, build_header(layout), produce)
            write_json_atomically(folder / CONFIG, config)
            if problems := lint(folder, model.path, max_rank):
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                raise AdapterError(f"{out}: vLLM could not serve this adapter: {problems[0]}{more}; {_MERGED}")
        return config


def plan_adapter(instruct: Path, deltas: Sequence[tuple[Path, float]], options: Options = AS_IS) -> Adapter:
    """The graft as an adapter; writes nothing.

    Raises what `graft` raises when the delta does not match the Instruct, and AdapterError when the graft is not that
    of one LoRA delta on linear layers.
    """
    plan = make_plan(instruct, deltas, options)
    used = {source.delta.digest for sources in plan.sources.values() for source in sources}
    if len(used) != 1:
        raise AdapterError(
            f"{instruct}: {len(used)} deltas with a scale other than 0, expected one for an adapter; {_MERGED}"
        )
    if options.merge.rule != "sum":
        raise AdapterError(f"{instruct}: merge rule {options.merge.rule} is not a sum of LoRA factors; {_MERGED}")
    model = plan.instruct
    return Adapter(model, {name: _factored(model, name, sources[0]) for name, sources in plan.sources.items()})


@dataclass(frozen=True)
class _Scaled:
    """The factors of one tensor, and the number to multiply B by."""

    path: Path
    """the delta's folder"""
    name: str
    factors: Factors
    turned: bool
    """the tensor is stored (inputs, outputs), and so are its factors"""
    factor: float

    def padded(self, which: str, rank: int) -> np.ndarray:
        """A [rank, inputs] or B [outputs, rank], float32; padded with zeros beyond the tensor's own rank.

        Raises DeltaError when the stored bytes do not match the certificate, AdapterError on overflow.
        """
        is_left = (which == "B") != self.turned
        stored = self.factors.left() if is_left else self.factors.right()
        array = stored.T if self.turned else stored
        own = self.factors.rank
        if which == "A":
            whole = np.zeros((rank, array.shape[1]), np.float32)
            whole[:own] = array
            return whole
        whole = np.zeros((array.shape[0], rank), np.float32)
        with np.errstate(over="ignore"):  # refused by name just below
            whole[:, :own] = (array.astype(np.float64) * self.factor).astype(np.float32)
        if not np.isfinite(whole).all():
            raise AdapterError(
                f"{self.path}: factor B of tensor {self.name} times {self.factor:g} overflows float32; lower the scale"
            )
        return whole


def _factored(model: Checkpoint, name: str, source: Source) -> _Scaled:
    """The factors for one tensor of the Instruct. Raises AdapterError when it is not LoRA on a linear layer."""
    delta, piece = source.delta, source.pieces[0]
    factors = delta.factors(piece.tensor)
    if factors is None or len(source.pieces) != 1 or piece.runs is not None or piece.tensor != name:
        form = delta.form(piece.tensor)
        raise AdapterError(f"{delta.path}: tensor {piece.tensor} is not a LoRA of {name} ({form}); {_MERGED}")
    kind = model.family.kind(name)
    if kind not in LAYERS:
        raise AdapterError(
            f"{delta.path}: tensor {name} is {of_kind(kind)}, but servers adapt only linear layers; {_MERGED}"
        )
    return _Scaled(delta.path, name, factors, kind == "conv1d", float(factors.scaling) * piece.scale)


def _module(model: Checkpoint, name: str) -> str:
    """The name, in the loaded model, of the module that holds a tensor."""
    return model.family.in_memory(name).removesuffix(".weight")


def _targets(model: Checkpoint, covered: set[str]) -> list[str]:
    """The last words of the modules' names if every layer with such a name is covered, else full names."""
    modules = {name: _module(model, name) for name in model.names if name.endswith(".weight")}
    endings = {modules[name].rpartition(".")[2] for name in covered}
    alike = {name for name, module in modules.items() if module.rpartition(".")[2] in endings}
    return sorted(endings) if alike == covered else sorted(modules[name] for name in covered)
