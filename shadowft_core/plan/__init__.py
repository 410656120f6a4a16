"""What a training will need, before anything is loaded: memory, steps, tokens, time, money and disk.

shape.py reads the model's shape. memory.py has the peak of one device. work.py counts tokens and operations. devices.py
has public facts of devices and the free memory of this machine. remedies.py finds changes that make a training fit.
"""

from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError, TrainError
from shadowft_core.files import read_record
from shadowft_core.params import Checkpoint, Params, Plan, Train
from shadowft_core.plan.devices import UTILISATION, Device, device, here
from shadowft_core.plan.memory import Setting, memory
from shadowft_core.plan.remedies import batch_of, changes
from shadowft_core.plan.shape import Shape, shape_of, shape_of_table
from shadowft_core.plan.work import Lengths, disk, read_lengths, work
from shadowft_core.weights import open_checkpoint
from shadowft_core.weights.settings import PairFields

__all__ = [
    "Device",
    "Lengths",
    "Shape",
    "device",
    "here",
    "plan",
    "plan_params",
    "read_lengths",
    "read_pair",
    "require_fits",
    "shape_of",
    "shape_of_table",
]


def plan(
    shape: Shape,
    train: Train,
    lengths: Lengths,
    on: Device,
    settings: Plan | None = None,
    *,
    devices: int | None = None,
    checkpoint: Checkpoint | None = None,
    untrained: bool = False,
) -> dict[str, Any]:
    """Plan one training of a model of `shape` on `on`; `untrained` as in `Setting`.

    Returns `memory` (bytes by part on one device), `peak` (their sum), `available` (bytes on one device; on a CPU, all
    processes share the machine's), `fits`, `change` (settings that would make it fit; null if it fits, or if none of
    those tried does), `steps`, `sequences`, `tokens` (without padding), `padding` (share), `operations`, `utilisation`,
    `seconds` (null if the FLOP/s of the device are unknown), `price` (null without a price), `disk` (bytes by what),
    `devices`, `device`, `assumed` (sentences).
    """
    settings, count = settings or Plan(), devices or train.launch.processes * train.launch.nodes
    setting = Setting(shape, train, on.kind, count, untrained)
    parts = memory(setting, batch_of(setting, lengths))
    peak, shared = sum(parts.values()), count if on.kind == "cpu" else 1
    available = on.memory / shared
    done = work(setting, lengths)
    share, source = UTILISATION[on.kind]
    if settings.utilisation is not None:
        share, source = settings.utilisation, "plan.utilisation"
    seconds = done.operations / (on.flops * share * count) if on.flops else None
    fits = peak <= available
    price = settings.price_per_hour
    return {
        "device": on.name,
        "devices": count,
        "strategy": train.launch.strategy if count > 1 else None,
        "memory": {name: round(size) for name, size in parts.items()},
        "peak": round(peak),
        "available": round(available),
        "fits": fits,
        "change": None if fits else changes(setting, lengths, on),
        "steps": done.steps,
        "sequences": done.sequences,
        "tokens": round(done.tokens),
        "padding": round(1 - done.tokens / done.padded, 3) if done.padded else 0.0,
        "operations": done.operations,
        "utilisation": share,
        "seconds": None if seconds is None else round(seconds, 1),
        "price": None if price is None or seconds is None else round(price * count * seconds / 3600, 2),
        "disk": {name: round(size) for name, size in disk(setting, checkpoint or Checkpoint(), 1).items()},
        "assumed": _assumed(setting, lengths, on, f"utilisation {share:g}: {source}"),
    }


def read_pair(pair: Path) -> tuple[dict[str, Shape], bool]:
    """The shapes of `base` and `instruct` in a folder made by `fetch`, and whether the Base lacks trained tokens.

    Raises CheckpointError if a model is missing or has another form.
    """
    if not pair.is_dir():
        raise CheckpointError(
            f"{pair}: no such folder; in a workspace, `dvc repro fetch` makes it, and `dvc repro prepare` the data, or "
            "plan a preset with --preset"
        )
    shapes = {role: shape_of(open_checkpoint(pair / role)) for role in ("base", "instruct")}
    return shapes, bool(read_record(pair / "pair.json", PairFields, "run fetch again").untrained_tokens)


def plan_params(
    params: Params,
    shapes: dict[str, Shape],
    lengths: Lengths,
    on: Device,
    untrained: bool,
    devices: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Plan every route of `params`, by name, but those that `train.command` trains: what it needs is not known.

    `shapes` has `base` and `instruct`; `untrained` is about the Base.
    """
    return {
        name: plan(
            shapes[route.model],
            params.train_for(name),
            lengths if route.replay else lengths.without_replay(),
            on,
            params.plan,
            devices=devices,
            checkpoint=params.checkpoint,
            untrained=untrained and route.model == "base",
        )
        for name, route in params.routes.items()
        if params.train_for(name).command is None
    }


def require_fits(routes: dict[str, dict[str, Any]]) -> None:
    """Raise TrainError for the first route that does not fit, with both sizes and a change of settings that fits."""
    for name, found in routes.items():
        if not found["fits"]:
            largest = sorted(found["memory"].items(), key=lambda part: -part[1])[:3]
            parts = ", ".join(f"{part} {size / 1e9:.1f}" for part, size in largest)
            change = found["change"]
            remedy = (
                f"set {change}"
                if change
                else "no change of batch, checkpointing, method or fsdp is enough; use a larger device"
            )
            raise TrainError(
                f"route {name}: training needs {found['peak'] / 1e9:.1f} GB on each device at its peak ({parts}), "
                f"{found['device']} has {found['available'] / 1e9:.1f} GB for it; {remedy}"
            )


def _assumed(setting: Setting, lengths: Lengths, on: Device, utilisation: str) -> list[str]:
    found = [utilisation]
    if not lengths.counted:
        found.append(
            "tokens: estimated, 3.5 characters each and 30 more a row; `shadowft prepare --tokenizer DIR` counts them"
        )
        found.append(
            f"memory: of rows with train.max_length {setting.train.max_length} tokens, since tokens were not counted"
        )
    if on.kind == "cuda":
        found.append("memory on CUDA: computed part by part as on a CPU, but never compared with a real GPU")
    if setting.shape.others:
        found.append("images: their tokens and the work of the vision tower are not counted")
    return found
