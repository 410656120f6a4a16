"""Checks whether a Base and an Instruct may be paired; the stage fetch resolves, checks and pins both.

A difference that would make a grafted model wrong is refused; an unusual one is a warning with both values. The
distance is sigma (sigma.py); its thresholds are in weights/similarity.py.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import SameModelError, UnrelatedError
from shadowft_core.files import new_folder, write_json_atomically
from shadowft_core.loading import require_loadable
from shadowft_core.pair.facts import compare
from shadowft_core.pair.references import is_remote, made_from, opened, resolve
from shadowft_core.pair.sigma import measure
from shadowft_core.pair.template_tokens import untrained_in_base
from shadowft_core.weights import INDEX, Checkpoint, open_checkpoint
from shadowft_core.weights.similarity import SIGMA_HIGH, SIGMA_LOW, SIGMA_UNRELATED

if TYPE_CHECKING:
    from shadowft_core.params import Fetch

__all__ = ["check_pair", "compare_models", "fetch", "opened", "resolve", "write_origin"]


def check_pair(base: Path, instruct: Path, standing: Sequence[str] = ()) -> dict[str, Any]:
    """Check a Base folder against an Instruct folder: headers, configs and tokenizers first, then all weights.

    Returns and raises what `compare_models` does, with digests.
    """
    return compare_models(open_checkpoint(base), open_checkpoint(instruct), full=True, digests=True, standing=standing)


def compare_models(
    base: Checkpoint,
    instruct: Checkpoint,
    *,
    full: bool,
    digests: bool = False,
    aggregations: bool = False,
    ignore: Sequence[str] = (),
    standing: Sequence[str] = (),
) -> dict[str, Any]:
    """Check a pair. `full` reads all weights; otherwise a few evenly spread ranges of every tensor are read.

    `ignore` and `standing` are patterns of tensors that only one side may have, from the command line and params.yaml.

    Returns `{"verdict": "ok"|"warn", "reasons": [...], "sampled", "sigma": {"overall", "layers": {...}, "modules":
    {...}, ...}, "facts", "tokenizer_digest", "untrained_tokens": [{"token", "id", "embedding", "head"}, ...], "base":
    {...}, "instruct": {...}}`. The tokenizer is the Instruct's. `untrained_tokens` are tokens that its chat template
    writes or that end a reply, and that the Base never trained. With `digests`, which needs `full` and two local
    models, base and instruct have `digest`.
    Raises PairError with all reasons in one line (SwappedError, SameModelError or UnrelatedError if that is the
    reason), QuantisedError, NotFiniteError, InputError for a wrong pattern, and CheckpointError for a model that cannot
    be read.
    """
    compared = compare(base, instruct, ignore, standing)
    reasons = compared.warned
    gap = measure(base, instruct, compared.matches, full, hashed=digests)
    sigma = gap.report(aggregations)
    pinned = [{"digest": model.digest()} if digests else {} for model in (base, instruct)]
    both = f"{base.path} and {instruct.path}"
    if digests and pinned[0] == pinned[1]:
        raise SameModelError(f"{both} are the same model, {pinned[0]['digest']}; pass the Base and its Instruct")
    if gap.over().apart == 0:
        read = "of all" if full else f"of {gap.read} sampled"
        raise SameModelError(f"{both} are the same model: none {read} weights differs; pass the Base and its Instruct")
    about = f"{sigma['overall']:.4f}" + ("" if full else ", estimated from a sample,")
    if sigma["overall"] > SIGMA_UNRELATED:
        raise UnrelatedError(
            f"{both}: sigma {about} is above {SIGMA_UNRELATED}; pass the Base this Instruct was made from"
        )
    if odd := gap.unrelated(SIGMA_UNRELATED):
        raise UnrelatedError(
            f"{both}: sigma of {odd[0][0]} is {odd[0][1]:.4f}, above {SIGMA_UNRELATED}, and {about} overall: "
            f"{len(odd)} tensors are transposed, scrambled or of another model; get both again"
        )
    for number, name in enumerate(("Base", "Instruct")):
        if grid := gap.grid(number):
            reasons.append(
                f"the {name} was dequantised: {grid}; sigma measures that grid, and a graft keeps it; use the "
                "original weights"
            )
    if sigma["overall"] > SIGMA_HIGH:
        reasons.append(f"sigma {about} is above {SIGMA_HIGH}: the two are far apart and a graft is risky")
    if sigma["overall"] < SIGMA_LOW:
        reasons.append(f"sigma {sigma['overall']:.5f} is below {SIGMA_LOW}: the two hardly differ")
    untrained = untrained_in_base(base, instruct)
    if untrained:
        reasons.append(
            f"the Base never trained {len(untrained)} tokens of the chat template: {', '.join(map(str, untrained))}; "
            "set render.template_tokens to choose how train treats them"
        )
    return {
        "verdict": "warn" if reasons else "ok",
        "reasons": reasons,
        "sampled": not full,
        "sigma": sigma,
        "facts": compared.facts,
        "tokenizer_digest": instruct.tokenizer_digest(),
        "untrained_tokens": [token.as_json() for token in untrained],
        "base": pinned[0],
        "instruct": pinned[1],
    }


def write_origin(params: "Fetch", out: Path) -> None:
    """Write the digests of the source files of generated references, so that `fetch` runs again when they change."""
    write_json_atomically(out, {"format": 1, "base": made_from(params.base), "instruct": made_from(params.instruct)})


def fetch(params: "Fetch", out: Path, standing: Sequence[str] = ()) -> None:
    """The stage: resolve both references, check the pair, write base/, instruct/ and pair.json into `out`.

    `standing` as in `compare_models`.

    Files on the same file system become hard links. If headers, configs or tokenizers rule out a pair, it is refused
    before weights are downloaded or copied; so is a model that only its own code could load.
    Raises what `compare_models` and `resolve` raise, and CheckpointError; `out` is then unchanged.
    """
    references = {"base": params.base, "instruct": params.instruct}
    if any(map(is_remote, references.values())):
        with opened(params.base) as (base, _), opened(params.instruct) as (instruct, _):
            compare(base, instruct, standing=standing)
            require_loadable(base.path, tokenizer=False)  # both are trained with the Instruct's
            require_loadable(instruct.path, tokenizer=True)
    resolved = {role: resolve(reference) for role, reference in references.items()}
    for role, (folder, _) in resolved.items():
        require_loadable(folder, tokenizer=role == "instruct")
    result = check_pair(resolved["base"][0], resolved["instruct"][0], standing)
    record = {"format": 1, **result}
    with new_folder(out) as folder:
        for role, (source, label) in resolved.items():
            _link(open_checkpoint(source), folder / role)
            record[role] = {"ref": references[role], "label": label, **result[role]}
        write_json_atomically(folder / "pair.json", record)


def _link(model: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    index = [Path(INDEX)] if (model.path / INDEX).is_file() else []
    for relative in [*map(Path, model.shards), *index, *model.other_files()]:
        source, target = (model.path / relative).resolve(), folder / relative
        target.parent.mkdir(exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)
