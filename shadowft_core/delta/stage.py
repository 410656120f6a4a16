"""The extract stage: from the model before tuning and what tuning left to a delta folder."""

from importlib.metadata import version
from pathlib import Path

from shadowft_core.checkpoint import file_digest, new_folder, open_checkpoint, read_json_object, write_json_atomically
from shadowft_core.delta.base import write_base
from shadowft_core.delta.dense import Storage, extract_dense
from shadowft_core.delta.folder import BASE, CERTIFICATE, FORMAT
from shadowft_core.delta.lora import ADAPTER_CONFIG, extract_lora
from shadowft_core.errors import DeltaError, WrongBase


def extract(base: Path, tuned: Path, out: Path, storage: Storage = "compressed") -> None:
    """Write the delta folder `out` from the model before tuning and what tuning left.

    `tuned` is a folder made by `train` (adapter/ or model/), a PEFT adapter folder or a checkpoint folder.
    Raises AdapterError for an adapter that cannot be exact, MisfitError when the two do not fit, Unrelated when a
    matrix has nothing to do with the Base's, ZeroDelta, NotFinite, WrongBase when train.json names another model,
    CheckpointError for unusable folders. Nothing is written then.
    """
    before = open_checkpoint(base)
    record = tuned / "train.json"
    train = read_json_object(record) if record.is_file() else None
    inner = [tuned / name for name in ("adapter", "model") if (tuned / name).is_dir()]
    if len(inner) > 1:
        raise DeltaError(f"{tuned}: holds both adapter/ and model/; pass one of them")
    source = inner[0] if inner else tuned
    adapter = (source / ADAPTER_CONFIG).is_file()
    with new_folder(out) as folder:
        tensors = extract_lora(before, source, folder) if adapter else extract_dense(before, source, folder, storage)
        write_base(before, folder)
        digest = before.digest()
        if train is not None and train.get("model_digest", digest) != digest:
            raise WrongBase(f"{record}: was tuned from {train['model_digest']}, {base} is {digest}; pass that model")
        certificate = {
            "format": FORMAT,
            "kind": "lora" if adapter else "dense",
            "base": {
                "digest": digest,
                "tokenizer_digest": before.tokenizer_digest(),
                "sample": file_digest(folder / BASE),
            },
            "tensors": tensors,
            "train": None
            if train is None
            else {"digest": file_digest(record), "data_digest": train.get("data_digest"), "seed": train.get("seed")},
            "created_by": f"shadowft {version('shadowft')}",
        }
        write_json_atomically(folder / CERTIFICATE, certificate)
