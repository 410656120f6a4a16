"""Finds the one result of a training in a folder, or says what the folder has instead and what to do about it."""

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from shadowft_core.delta.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from shadowft_core.delta.told import STATE, checkpoints
from shadowft_core.errors import AdapterError, CheckpointError, DeltaError
from shadowft_core.files import read_json_object
from shadowft_core.weights.entries import leads_out, require_own_files

SHOWN = 6  # names in a message
_ADAPTER = re.compile(r"adapter_config\.json|adapter_model\.(safetensors|bin)")
_MODEL = re.compile(
    r"(?!adapter_|value_head).*\.safetensors(\.index\.json)?|pytorch_model(?!_fsdp).*\.bin(\.index\.json)?"
)
_GATHER = "put the config.json of the Base into OUT, and pass OUT"
_SAVE = "load it where it was trained and save it with save_pretrained, or let the trainer save safetensors"
_LEFTOVERS = (  # name of a file or folder, what it is, and the remedy
    (
        r"pytorch_model_fsdp_\d+|__\d+_\d+\.distcp",
        "shards of FSDP",
        "merge them with `accelerate merge-weights {} OUT` (axolotl: `axolotl merge-sharded-fsdp-weights`), " + _GATHER,
    ),
    (
        r"pytorch_model_fsdp\.bin",
        "a pickled state of FSDP",
        "pass the folder that the trainer's save_model wrote at the end, or " + _SAVE,
    ),
    (
        r"global_step\d+|zero_to_fp32\.py|(mp|zero_pp)_rank_.*\.pt",
        "partitions of DeepSpeed",
        "gather them with `python zero_to_fp32.py . OUT --safe_serialization` in that folder, " + _GATHER,
    ),
    (
        r"adapter_model-\d+-of-\d+\.safetensors|adapter_model\.safetensors\.index\.json",
        "an adapter in several files",
        "load it with PEFT and save it with save_pretrained, which writes one",
    ),
    (r"consolidated.*\.(pth|pt)|model.*\.(pt|pth|ckpt)|.*\.gguf", "weights that are not safetensors", _SAVE),
)


def find_weights(folder: Path) -> Path:
    """The folder with the adapter or the model: `folder` itself, or adapter/ or model/ in it.

    Subfolders such as checkpoint-500/ are ignored if the folder has a result. Raises DeltaError naming both if it has
    two, and naming the choices if there are only checkpoints, or one is newer than the result; CheckpointError or
    AdapterError with the remedy if there are only the pieces that a parallel trainer leaves.
    """
    inner = [name for name in ("adapter", "model") if (folder / name).is_dir()]
    if odd := [name for name in inner if leads_out(folder / name)]:
        raise DeltaError(f"{folder / odd[0]}: a link that leads out of its folder; pass the folder it leads to")
    found = [*(f"{name}/" for name in inner), *_kinds(folder)]
    if len(found) == 1 and inner:
        weights = folder / inner[0]
        found = [f"{inner[0]}/{name}" for name in _kinds(weights)]
    else:
        weights = folder
    if len(found) > 1:
        raise DeltaError(f"{folder}: contains both {found[0]} and {found[1]}; remove one, or pass a folder with one")
    if (weights / "value_head.safetensors").exists() or (weights / "value_head.bin").exists():
        raise DeltaError(
            f"{weights}: value_head belongs to a reward model or to PPO, and no delta can carry it; move it out of the "
            "folder to take the rest"
        )
    if not _is_complete(weights):
        _refuse(folder, weights)
    require_own_files(weights)
    _require_newest(folder)
    return weights


def _kinds(folder: Path) -> list[str]:
    """One file name for each kind of tuned model in a folder: an adapter, a whole model."""
    names = _names(folder)
    return [name for pattern in (_ADAPTER, _MODEL) if (name := next(filter(pattern.fullmatch, names), None))]


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def _is_complete(folder: Path) -> bool:
    """Whether a folder has weights that `extract` reads; whether they are whole is checked when they are opened."""
    names = _names(folder)
    if ADAPTER_CONFIG in names:
        return ADAPTER_WEIGHTS in names
    return any(_MODEL.fullmatch(name) and name.endswith((".safetensors", ".json")) for name in names)


def _refuse(folder: Path, weights: Path) -> None:
    """Raise the error for a folder without a result, if its cause is evident; else opening the folder will say it."""
    choices = list(_choices(folder))
    started = f"only {ADAPTER_CONFIG} of it" if ADAPTER_CONFIG in _names(folder) else "no result"
    if choices:
        best = _best(folder)
        hint = f", {best} is the best by the trainer's own measure" if best in choices else ""
        raise DeltaError(
            f"{folder}: has {started}, so the training did not save its end; pass one of its folders: "
            f"{', '.join(choices[:SHOWN])}{f' and {len(choices) - SHOWN} more' if len(choices) > SHOWN else ''}{hint}"
        )
    for place in (weights, *(folder / name for name in reversed(checkpoints(folder)))):
        names = _names(place)
        for pattern, what, remedy in _LEFTOVERS:
            if piece := next((name for name in names if re.fullmatch(pattern, name)), None):
                error = AdapterError if piece.startswith("adapter_") else CheckpointError
                raise error(f"{place}: has only {what} ({piece}), no weights to read; {remedy.format(place / piece)}")


def _choices(folder: Path) -> Iterator[str]:
    """The subfolders with a result: checkpoints by their step, then others by name."""
    saved = checkpoints(folder)
    others = [name for name in _names(folder) if name not in saved and (folder / name).is_dir()]
    for name in [*saved, *others]:
        if _is_complete(folder / name) and len(_kinds(folder / name)) == 1:
            yield name


def _state(folder: Path) -> dict[str, object]:
    with suppress(CheckpointError):  # told.py names a file that cannot be read
        return read_json_object(folder / STATE)
    return {}


def _best(folder: Path) -> str | None:
    """The checkpoint that the trainer's newest state calls the best."""
    for place in (folder, *(folder / name for name in reversed(checkpoints(folder)))):
        if isinstance(best := _state(place).get("best_model_checkpoint"), str):
            return Path(best).name
    return None


def _require_newest(folder: Path) -> None:
    """Raise DeltaError if the result in the folder is of an earlier training than its newest checkpoint."""
    step, saved = _state(folder).get("global_step"), checkpoints(folder)
    if not saved:
        return
    newest = int(saved[-1].rpartition("-")[2])
    if isinstance(step, int) and step < newest:
        raise DeltaError(
            f"{folder}: its result is of step {step} ({STATE}), but it also has checkpoint-{newest}, so a longer "
            f"training was not finished; pass {folder / saved[-1]}, or remove it to take the result"
        )
