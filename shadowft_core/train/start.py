"""Starts a training from the champion: its delta is added to the model, or becomes the adapter's first factors.

The model folder itself stays the reference: what is extracted afterwards is the whole change against it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shadowft_core.delta import Delta, open_delta
from shadowft_core.errors import ParamsError, TrainError
from shadowft_core.files.record import Record, read_record
from shadowft_core.params import Train
from shadowft_core.weights import Checkpoint

SCRATCH = "set train.start to scratch"
_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class StartFile(Record):
    """start.json of the stage start: the champion and its delta, or why there is none."""

    format: Literal[1]
    start: Literal["scratch", "champion"]
    reason: str | None = None
    name: str | None = None
    version: int | None = Field(None, ge=1)
    delta: _Digest | None = None
    recipe: _Digest | None = None
    base: _Digest | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.start == "champion" and None in (self.name, self.version, self.delta):
            raise ValueError("expected name, version and delta of the champion")
        return self


@dataclass(frozen=True)
class Start:
    """Where a training starts. `facts` are what train.json records.

    At most one is set: `factors`, a delta whose factors a new LoRA gets, or `added`, one that the weights get.
    """

    facts: dict[str, Any]
    factors: Delta | None = None
    added: Delta | None = None


def read_start(params: Train, folder: Path | None) -> Start:
    """The start that `params.start` asks for, from a folder made by the stage start.

    Raises ParamsError if the folder is missing or was made for another start, TrainError for a damaged start.json and
    if the method cannot start from a delta, DeltaError for a damaged delta.
    """
    if params.start == "scratch":
        return Start({"start": "scratch"})
    if folder is None:
        raise ParamsError(
            "train.start is champion, but no start was given; pass --start, a folder made by `shadowft start`"
        )
    facts = read_record(folder / "start.json", StartFile, "run `shadowft start` again", error=TrainError)
    if facts.start == "scratch":
        if facts.reason is not None:  # nothing was ever promoted
            return Start({"start": "scratch", "reason": facts.reason})
        raise ParamsError(
            f"{folder / 'start.json'}: start is scratch, train.start is champion; run `shadowft start` again"
        )
    delta = open_delta(folder / "delta")
    if delta.digest != facts.delta:
        raise TrainError(f"{folder / 'delta'}: is {delta.digest}, start.json has {facts.delta}; run `shadowft start`")
    kept = facts.model_dump(include={"start", "name", "version", "delta"})
    if params.method not in ("lora", "qlora"):
        return Start(kept, added=delta)
    _require_factors(delta, params)
    return Start(kept, factors=delta)


def add_delta(network: Any, model: Checkpoint, start: Start) -> None:
    """Add the delta to the weights of a model without adapter, in float32; nothing if the start has none to add.

    Raises TrainError if a tensor of the delta is not a weight of the model, or has another shape.
    """
    import torch

    if (delta := start.added) is None:
        return
    weights = {_in_files(model, name): weight for name, weight in network.named_parameters()}
    for name in delta.names:
        weight, shape = weights.get(name), delta.shape(name)
        if weight is None or tuple(weight.shape) != shape:
            found = "is not a weight of the loaded model" if weight is None else f"is {tuple(weight.shape)}"
            raise TrainError(f"{model.path}: {name} {found}, the champion's delta has it as {shape}; {SCRATCH}")
        with torch.no_grad():
            weight.data = weight.data.float()
            weight.add_(torch.from_numpy(delta.read(name)).to(weight.device))


def set_factors(network: Any, model: Checkpoint, start: Start) -> Any:
    """Set A and B of every LoRA layer to the factors of the delta, if the start has any; returns the model.

    Raises TrainError unless the delta has factors of the same rank and scale for exactly these layers.
    """
    import torch

    if (delta := start.factors) is None:
        return network
    layers = {
        _in_files(model, f"{name.removeprefix('base_model.model.')}.weight"): layer
        for name, layer in network.named_modules()
        if hasattr(layer, "lora_A") and "default" in layer.lora_A
    }
    if differing := sorted(layers.keys() ^ set(delta.names)):
        owner = "the champion" if differing[0] in delta.names else "this training"
        raise TrainError(
            f"{model.path}: only {owner} adapts {differing[0]}; the champion adapts {len(delta.names)} layers, this "
            f"training {len(layers)}; set train.lora.targets to those of the champion, or {SCRATCH}"
        )
    for name, layer in layers.items():
        factors = delta.factors(name)
        if factors is None:
            raise TrainError(f"{name}: the champion's delta has no factors; set train.method to full, or {SCRATCH}")
        for what, here, there in (
            ("rank", layer.r["default"], factors.rank),
            ("scale of B A, alpha/rank,", layer.scaling["default"], factors.scaling),
        ):
            if here != there:
                raise TrainError(
                    f"{name}: the {what} is {here:g}, that of the champion {there:g}; set train.lora to the rank and "
                    f"alpha of the champion, or {SCRATCH}"
                )
        with torch.no_grad():
            for side, values in ((layer.lora_A, factors.right()), (layer.lora_B, factors.left())):
                weight = side["default"].weight
                if tuple(weight.shape) != values.shape:
                    raise TrainError(
                        f"{model.path}: a factor of {name} is {tuple(weight.shape)}, the champion's {values.shape}; "
                        f"{SCRATCH}"
                    )
                weight.copy_(torch.from_numpy(values))
    return network


def _require_factors(delta: Delta, params: Train) -> None:
    if delta.kind != "lora":
        raise TrainError(
            f"{delta.path}: the champion's delta is {delta.kind}, but train.method {params.method} starts from the "
            f"factors of a LoRA; set train.method to full, or {SCRATCH}"
        )
    if params.lora.dora:
        raise TrainError(
            f"{delta.path}: the champion is a LoRA, whose factors are no start for train.lora.dora; set it to false, "
            f"or {SCRATCH}"
        )


def _in_files(model: Checkpoint, parameter: str) -> str:
    """The name in files of a parameter of the loaded model; for a tied head, that of the embedding."""
    return model.home(model.family.in_files(parameter))
