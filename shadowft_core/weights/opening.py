"""Opening a model folder: every header and the index are checked before any tensor is used."""

import re
from collections.abc import Callable
from pathlib import Path

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object
from shadowft_core.limits import SHARDS, TENSORS
from shadowft_core.weights.checkpoint import INDEX, SINGLE, Checkpoint
from shadowft_core.weights.entries import require_own_files
from shadowft_core.weights.header import TensorInfo, ranged_header, read_header
from shadowft_core.weights.remote import RemoteFiles

_OF_TRAINER = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler|rng_state.*)\.(bin|pt|pth)")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model folder, checking every header and the index before any tensor is used.

    Raises CheckpointError when the folder is missing, has no safetensors weights, has a safetensors file that no index
    names, when index and files disagree, or for a pipe, device or link that leads out of the folder. Shard names are
    plain file names, so they cannot leave the folder either.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; expected a Hugging Face model folder")
    require_own_files(path)
    present = {file.name for file in path.iterdir() if file.name.endswith(".safetensors")}
    if (path / INDEX).exists():
        weight_map = _weight_map(path / INDEX)
        files = sorted(set(weight_map.values()))
    else:
        weight_map, files = None, [SINGLE]
        if not present:
            kinds = sorted(
                f.name
                for f in path.iterdir()
                if f.suffix in {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5"} and not _OF_TRAINER.fullmatch(f.name)
            )
            found = f"only {', '.join(kinds[:3])}" if kinds else "no weights"
            raise CheckpointError(
                f"{path}: expected safetensors, found {found}; pass a model folder, or convert the model with "
                "save_pretrained"
            )
        if SINGLE not in present:
            raise CheckpointError(
                f"{path}: has {min(present)}, but neither {SINGLE} nor {INDEX}, which names the files of a model in "
                "several; save or download the folder again, with the index"
            )
    if missing := sorted(set(files) - present):
        raise CheckpointError(f"{path}: {missing[0]} is missing; download the folder again")
    if stray := sorted(present - set(files)):
        raise CheckpointError(f"{path}: no index names {stray[0]}, so it would be ignored; move it out of the folder")
    return _assemble(path, files, weight_map, lambda name: read_header(path / name))


def open_safetensors(file: Path) -> Checkpoint:
    """One safetensors file as a checkpoint without side files; its header is checked as strictly."""
    raw, tensors = read_header(file)
    return Checkpoint(file.parent, {file.name: raw}, tensors)


def open_remote(path: Path, remote: RemoteFiles) -> Checkpoint:
    """Open a checkpoint that has its side files and index in `path` and reads its weights over the network.

    Checks headers as `open_checkpoint` does, but ignores files that the index does not name. Only `part`, `sample` and
    `equal` can read its weights. Raises CheckpointError as `open_checkpoint` does.
    """
    weight_map = _weight_map(path / INDEX) if (path / INDEX).exists() else None
    files = sorted(set(weight_map.values())) if weight_map else [SINGLE]
    if missing := sorted(set(files) - set(remote.sizes)):
        raise CheckpointError(f"{path}: {missing[0]} is missing at the source; expected safetensors weights")

    def header(name: str) -> tuple[bytes, dict[str, TensorInfo]]:
        return ranged_header(path / name, remote.sizes[name], lambda start, length: remote.read(name, start, length))

    return _assemble(path, files, weight_map, header, remote)


def _assemble(
    path: Path,
    files: list[str],
    weight_map: dict[str, str] | None,
    header: Callable[[str], tuple[bytes, dict[str, TensorInfo]]],
    remote: RemoteFiles | None = None,
) -> Checkpoint:
    """The checkpoint of these files. Raises CheckpointError unless every header and the index agree."""
    shards: dict[str, bytes] = {}
    tensors: dict[str, TensorInfo] = {}
    for name in files:
        shards[name], found_here = header(name)
        if len(tensors) + len(found_here) > TENSORS:
            raise CheckpointError(f"{path}: more than {TENSORS} tensors, the limit; no known model has as many")
        for tensor, info in found_here.items():
            if tensor in tensors:
                raise CheckpointError(
                    f"{path}: tensor {tensor} is in {tensors[tensor].file.name} and in {name}; save again"
                )
            if weight_map is not None and weight_map.get(tensor) != name:
                raise CheckpointError(
                    f"{path}: tensor {tensor} is in {name}, the index names {weight_map.get(tensor, 'no file')}; "
                    "download the folder again"
                )
            tensors[tensor] = info
    if weight_map is not None and (lost := sorted(set(weight_map) - set(tensors))):
        raise CheckpointError(f"{path}: tensor {lost[0]} is in the index but in no file; download the folder again")
    if not tensors:
        raise CheckpointError(f"{path}: no tensors; download the folder again")
    found = Checkpoint(path, shards, tensors, remote)
    return found if remote else found.load_cached_digests()


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map; download the folder again")
    files: set[str] = set()
    for tensor, name in weight_map.items():
        plain = isinstance(name, str) and name.endswith(".safetensors") and name.isprintable() and len(name) < 256
        if not plain or set(name) & set("/\\") or name.startswith("."):
            raise CheckpointError(
                f"{index}: tensor {tensor!r:.200} is in {name!r:.80}; expected a plain *.safetensors file name"
            )
        files.add(name)
    for count, what, limit in ((len(weight_map), "tensors", TENSORS), (len(files), "files", SHARDS)):
        if count > limit:
            raise CheckpointError(f"{index}: names {count} {what}, the limit is {limit}; download the folder again")
    return weight_map
