"""Makes the grafted model: in memory for the sweep, otherwise as a folder."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shadowft_core.delta import DeltaSource
from shadowft_core.errors import GraftError, say
from shadowft_core.files import (
    canonical_json,
    file_digest,
    new_folder,
    read_json_object,
    real_path,
    write_atomically,
    write_json_atomically,
)
from shadowft_core.grafting.arithmetic import TensorResult, parts, whole
from shadowft_core.grafting.options import Options, Scope
from shadowft_core.grafting.plan import OUTPUTS, Plan, make_plan
from shadowft_core.grafting.receipt import RECEIPT, RECIPE, build_receipt
from shadowft_core.weights import DTYPES, INDEX, build_header, model_digest, percent, write_shards

PLAIN = Options()
NO_NOTES: Mapping[str, Any] = {}


def grafted_tensors(
    instruct: Path, deltas: Sequence[tuple[Path | DeltaSource, float]], options: Options = PLAIN
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `(name, array)` of every tensor of the Instruct, in file order, grafted or untouched; writes nothing.

    The call itself raises what `graft` raises when models, names, shapes, types, tokens or scope do not match. A
    damaged tensor, or a sum that is not finite in the output dtype, raises when the iteration reaches it.
    """
    plan = make_plan(instruct, deltas, options)
    return ((name, whole(plan, name)) for name in plan.instruct.names)


def graft(
    instruct: Path,
    deltas: Sequence[tuple[Path | DeltaSource, float]],
    out: Path,
    options: Options = PLAIN,
    notes: Mapping[str, Any] = NO_NOTES,
) -> dict[str, Any]:
    """Write the complete model folder `out` with recipe.json and receipt.json; return the recipe.

    `deltas` are (delta folder or `DeltaSource`, scale); a `Difference` of two checkpoints can replace a stored delta.
    `notes` are copied into the recipe.

    Raises MisfitError when a tensor, a shape, a token or an expert does not match, UnrelatedError, OntoBaseError,
    ZeroDeltaError when the scope excludes all of a delta, QuantisedError, NotFiniteError, CastOverflowError, DeltaError
    or CheckpointError for damaged folders, GraftError for options that match nothing or contradict each other, and
    InputError for wrong `ignore` patterns. Nothing is written then.
    """
    plan = make_plan(instruct, deltas, options)
    for path in (instruct, *(path for delta, _ in plan.deltas for path in delta.paths)):
        if real_path(path).is_relative_to(real_path(out)):
            raise GraftError(f"{out}: contains the input {path} and would be replaced; choose another --out")
    model = plan.instruct
    with new_folder(out) as folder:
        copied = _side_files(plan, folder)
        files = {folder / file: _header(plan, file) for file in model.shards}
        written = write_shards(files, lambda name: parts(plan, name), label="graft")
        results: dict[str, TensorResult] = {name: one.fact for name, one in written.items()}
        model.add_digests({name: result.digest for name, result in results.items()})
        instruct_digest = model.digest()
        recipe: dict[str, Any] = {
            "format": 1,
            "instruct": {"digest": instruct_digest},
            "deltas": [delta.recorded | {"scale": scale} for delta, scale in plan.deltas],
            **options.recorded(),
            "digest": model_digest({n: (plan.dtype[n], model.info(n).shape, written[n].digest) for n in model.names}),
            "files": copied,
            **notes,
        }
        receipt = build_receipt(plan, results, instruct_digest)
        write_json_atomically(folder / RECIPE, recipe)
        write_json_atomically(folder / RECEIPT, receipt)
    summary = _summary(receipt, options.scope)
    say(f"graft: {len(plan.sources)} tensors grafted, {len(plan.untouched)} untouched{summary}")
    return recipe


def _summary(receipt: Mapping[str, Any], scope: Scope) -> str:
    """The shares of the delta that are added and not added, and the share that survives the rounding."""
    travel, kept = receipt["travel"], receipt["retention"]
    words = []
    if travel:
        what = "" if scope == "all" else f"{scope}: " if isinstance(scope, str) else "scope: "
        words.append(
            f"{what}{percent(travel['energy'])} of the delta's energy is added, {percent(1 - travel['energy'])} is not "
            f"({_listed(list(travel['stays']))})"
        )
    lost = {name: rows["base_only"]["rows"] for name, rows in receipt["tokens"].items() if rows["base_only"]["rows"]}
    words += [f"{count} rows of {name} are not added: the Instruct lacks their tokens" for name, count in lost.items()]
    if kept:
        part = "of what is added," if travel or lost else "of the delta's energy"
        words.append(f"{part} {percent(kept['energy'])} survives the rounding")
    for reason, sides in receipt["ignored"].items():
        words += [f"{len(names)} only in the {side} ({reason})" for side, names in sides.items()]
    return "".join(f"; {part}" for part in words)


def _listed(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _header(plan: Plan, file: str) -> bytes:
    model = plan.instruct
    if not plan.recast:
        return model.shards[file]
    return build_header(
        {n: (plan.dtype[n], model.info(n).shape) for n in model.names if model.info(n).file.name == file}
    )


def _side_files(plan: Plan, folder: Path) -> dict[str, str]:
    """Copy config, tokenizer and templates; return their digests.

    The copies are byte for byte, but another output dtype changes config.json and the index.
    """
    model = plan.instruct
    files: dict[str, str] = {}
    for relative in model.other_files():
        if relative.name in (RECIPE, RECEIPT):
            continue
        target = folder / relative
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(model.path / relative, target)
        if plan.recast and relative.name == "config.json":
            write_atomically(target, _with_dtype(model.config, plan).encode("utf-8"))
        files[relative.as_posix()] = file_digest(target)
    if (model.path / INDEX).is_file():
        shutil.copyfile(model.path / INDEX, folder / INDEX)
        if plan.recast:
            index = read_json_object(folder / INDEX)
            size = sum(model.info(n).size * DTYPES[plan.dtype[n]].itemsize for n in model.names)
            metadata = index.get("metadata")
            index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": size}
            write_atomically(folder / INDEX, canonical_json(index))
    return files


def _with_dtype(config: dict[str, Any], plan: Plan) -> str:
    name = next(long for long, short in OUTPUTS.items() if short in plan.dtype.values())
    changed = json.loads(json.dumps(config))
    for part in (changed, *(value for value in changed.values() if isinstance(value, dict))):
        keys = [key for key in ("dtype", "torch_dtype") if key in part] or (["dtype"] if part is changed else [])
        part.update(dict.fromkeys(keys, name))
    return json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
