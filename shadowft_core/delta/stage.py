"""The extract stage: makes a delta folder from the model before tuning and the tuned model or adapter."""

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shadowft_core.delta.base import write_base
from shadowft_core.delta.dense import Storage, write_dense
from shadowft_core.delta.difference import Difference
from shadowft_core.delta.folder import open_delta
from shadowft_core.delta.format import BASE, CERTIFICATE, FORMAT
from shadowft_core.delta.interpret import open_adapter
from shadowft_core.delta.lowrank import lower, require_budget
from shadowft_core.delta.merge import write_changes
from shadowft_core.delta.tuned import read_tuned
from shadowft_core.files import file_digest, new_folder, write_json_atomically
from shadowft_core.weights import note_unknown, open_checkpoint, require_met


def extract(
    base: Path,
    tuned: Path,
    out: Path,
    storage: Storage = "compressed",
    lowrank: float | None = None,
    unrelated: bool = False,
    ignore: Sequence[str] = (),
    standing: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the delta folder `out` from the model before tuning and the result of the tuning; return facts about it.

    `tuned` is a folder made by `train` (adapter/ or model/), a PEFT adapter folder or a checkpoint folder.
    The kind is `lora` if every tensor's delta is a product of the adapter's own factors, else `dense`. With `lowrank`,
    a relative error, the kind is `lowrank`: factors approximate the exact delta within that error in every tensor.
    Facts: `kind`, `tensors` (number by form), `bytes` of the folder, `error` (|D - delta| / |D| over all tensors),
    `tokens` and `ignored` (names), both as in delta.json; `trainer`, what the files of another trainer tell, or None.

    `unrelated` waives the check that no matrix moved by more than its own norm. `ignore` are glob patterns of tensors
    that only one side has; `standing` are those of params.yaml, which need not match here because they may be meant for
    the Instruct. The certificate records both, and a graft of this delta applies the patterns.

    Raises AdapterError for an adapter without an exact delta, MisfitError when the two do not match, UnrelatedError
    when a matrix is not related to the Base's, ZeroDeltaError, NotFiniteError, WrongBaseError when the files name
    another model, CheckpointError for unusable folders, InputError for a pattern in `ignore` that does not match,
    ParamsError for a budget out of range. Nothing is written then.
    """
    if lowrank is not None:
        require_budget(lowrank)
    with new_folder(out) as folder:
        if lowrank is None:
            certificate = _exact(base, tuned, folder, storage, unrelated, ignore, standing)
        else:
            exact = folder / "exact"
            exact.mkdir()
            certificate = _exact(base, tuned, exact, storage, unrelated, ignore, standing)
            entries, error = lower(open_delta(exact), lowrank, folder, storage)
            certificate |= {"kind": "lowrank", "lowrank": {"budget": lowrank, "error": error}, "tensors": entries}
            (exact / BASE).rename(folder / BASE)
            shutil.rmtree(exact)
            write_json_atomically(folder / CERTIFICATE, certificate)
    forms = [entry["form"] for entry in certificate["tensors"].values()]
    return {
        "kind": certificate["kind"],
        "tensors": {form: forms.count(form) for form in sorted(set(forms))},
        "bytes": sum(file.stat().st_size for file in out.iterdir()),
        "error": certificate.get("lowrank", {}).get("error", 0.0),
        "ignored": certificate.get("ignored", {}).get("names", {}),
        "tokens": certificate.get("tokens", {}),
        "trainer": certificate.get("trainer"),
    }


def _exact(
    base: Path,
    tuned: Path,
    folder: Path,
    storage: Storage,
    unrelated: bool,
    ignore: Sequence[str],
    standing: Sequence[str],
) -> dict[str, Any]:
    """Write an exact delta into an existing folder; returns its certificate."""
    before = open_checkpoint(base)
    result = read_tuned(tuned)
    extra: dict[str, Any] = {} if result.trainer is None else {"trainer": result.trainer}
    result.require_named(before)
    if result.adapter:
        note_unknown(before)
        adapter = open_adapter(before, result.weights, [*ignore, *standing])
        require_met(ignore, adapter.ignored, f"{base} and {result.weights}")
        tensors, ignored = write_changes(adapter, folder, storage, unrelated), adapter.ignored
    else:
        after = open_checkpoint(result.weights)
        result.require_nearest(before, after)
        delta = Difference(before, after, unrelated, ignore, standing)
        shapes = {name: delta.shape(name) for name in delta.names}
        tensors = write_dense(folder, shapes, delta.part, storage, delta.require_related)
        ignored = delta.layout.ignored
        extra |= {"tokens": delta.layout.tokens} if delta.layout.tokens else {}
    if ignored or ignore or standing:
        extra |= {"ignored": {"patterns": [*ignore, *standing], "names": ignored}}
    write_base(before, folder)
    result.require_start(before)
    factors_only = all(entry["form"] == "factors" for entry in tensors.values())
    certificate = {
        "format": FORMAT,
        "kind": "lora" if result.adapter and factors_only else "dense",
        "base": {
            "digest": before.digest(),
            "tokenizer_digest": before.tokenizer_digest(),
            "tied": before.head_is_tied,
            "sample": file_digest(folder / BASE),
        },
        "tensors": tensors,
        "train": None
        if result.train is None
        else {
            "digest": file_digest(result.record),
            "data_digest": result.train.get("data_digest"),
            "seed": result.train.get("seed"),
        },
        "waivers": ["unrelated"] if unrelated else [],
        "created_by": f"shadowft {version('shadowft')}",
        **extra,
    }
    write_json_atomically(folder / CERTIFICATE, certificate)
    return certificate
