"""The functions for use from Python, which `shadowft_core` exports: what a graft and a verdict need, and no more.

Each does what the verb of its name does, or `pair` or `verdict --items`, without its files of parameters. They take
folders as text or paths, return what the verb prints with --json, and report progress on stderr. Every error that a
user can act on is a `ShadowError`, whose text is one line with the remedy. tests/test_package.py freezes the
signatures; the functions of the rooms may change.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shadowft_core.delta import Delta, Storage
    from shadowft_core.grafting import Options
    from shadowft_core.params import Registry, Store, Verdict
    from shadowft_core.verdict.itemfile import Table

Folder = str | os.PathLike[str]


def check_pair(base: Folder, instruct: Folder, *, ignore: Sequence[str] = ()) -> dict[str, Any]:
    """Check whether the models in two folders may be paired; reads all weights and writes nothing.

    `ignore` are glob patterns of tensors that only one side may have. Returns the fields of pair.json: `verdict` (`ok`
    or `warn`), `reasons`, `sigma` (the distance of the weights, relative to their size), `facts`, the digests and the
    tokens that the Base never trained.

    Raises PairError with all reasons when the pair is refused, CheckpointError for a folder that cannot be read,
    NotFiniteError for NaN or infinity in weights, and InputError for a pattern that matches nothing.
    """
    from shadowft_core.pair import compare_models
    from shadowft_core.weights import open_checkpoint

    both = open_checkpoint(Path(base)), open_checkpoint(Path(instruct))
    return compare_models(*both, full=True, digests=True, ignore=ignore)


def extract(
    base: Folder,
    tuned: Folder,
    out: Folder,
    *,
    storage: "Storage" = "compressed",
    lowrank: float | None = None,
    unrelated: bool = False,
    ignore: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the delta folder `out`: the exact change from a model to the result of its tuning.

    `tuned` is a checkpoint folder, a PEFT adapter folder or a folder made by `shadowft train`. An existing `out` is
    replaced with everything in it. `storage` is `compressed`, `bfloat16` or `float32`; all are exact. `lowrank` is an
    error, relative to the norm of each tensor's delta, within which factors may approximate it. `unrelated` allows a
    matrix to move by more than its own norm. `ignore` are glob patterns of tensors that only one side may have.

    Returns `kind` (`lora`, `dense` or `lowrank`), `tensors` (number by form), `bytes` of the folder, `error` (relative,
    0 if exact), `tokens` and `ignored`.

    Raises AdapterError for an adapter without an exact delta, MisfitError when the two do not match, UnrelatedError,
    ZeroDeltaError when nothing changed, NotFiniteError, CheckpointError for a folder that cannot be read, InputError
    for a pattern that matches nothing, ParamsError for a `lowrank` out of range. `out` is then unchanged.
    """
    from shadowft_core.delta import extract

    return extract(Path(base), Path(tuned), Path(out), storage, lowrank, unrelated, ignore)


def open_delta(folder: Folder) -> "Delta":
    """Open a delta folder: its names, shapes and forms; tensors are read when they are asked for.

    Raises DeltaError for another format version, or a certificate that does not match the weight files.
    """
    from shadowft_core.delta import open_delta

    return open_delta(Path(folder))


def graft(
    instruct: Folder,
    deltas: Sequence[tuple["Folder | Delta", float]],
    out: Folder,
    options: "Options | None" = None,
) -> dict[str, Any]:
    """Write the complete model folder `out`: the Instruct + the sum of scale * delta, for each (delta, scale).

    A delta is a folder made by `extract`, or open. The sum is float32 and rounded once. An existing `out` is replaced
    with everything in it. Returns the recipe, with the digests of the models and of every delta.

    Raises MisfitError when a tensor, a shape, a token or an expert does not match, OntoBaseError, UnrelatedError,
    ZeroDeltaError when the scope excludes all of a delta, QuantisedError, NotFiniteError, CastOverflowError, DeltaError
    or CheckpointError for damaged folders, GraftError for options that match nothing or contradict each other, and
    InputError for wrong patterns to ignore. `out` is then unchanged.
    """
    from shadowft_core.delta import Delta
    from shadowft_core.grafting import Options, graft

    named = [(delta if isinstance(delta, Delta) else Path(delta), scale) for delta, scale in deltas]
    return graft(Path(instruct), named, Path(out), options or Options())


def read_receipt(folder: Folder) -> dict[str, Any]:
    """What `graft` recorded in a folder: tensors grafted and not, and why; rows by token; what rounding left of the
    delta (shares from 0 to 1). Reads no weights.

    Raises CheckpointError when the folder was not made by `graft`, or its record is damaged.
    """
    from shadowft_core.grafting.receipt import read_receipt

    return read_receipt(Path(folder))


def publish(delta: Folder, store: "Store") -> str:
    """Send a delta folder to a store and return its digest. Safe to repeat and to race; sends only what is lacking.

    Raises DeltaError for a folder that is not a delta or changes meanwhile, StoreConflictError when the store has
    another delta under this digest, StoreError when it lacks what the transfer needs, StoreUnreachableError.
    """
    from shadowft_core.store import publish

    return publish(Path(delta), store)


def materialize(
    reference: str, out: Folder, registry: "Registry", store: "Store", *, instruct: Folder | None = None
) -> dict[str, Any]:
    """Rebuild a registered model, bit for bit, into the folder `out`; returns its recipe.

    `reference` is `models:/NAME/3`, `models:/NAME@ALIAS` or `models:/NAME@champion`, which must agree with the ledger
    in `store`. `instruct` is the Instruct's folder if the recorded reference cannot be resolved here. As everywhere in
    this project, MLFLOW_TRACKING_URI overrides `registry.tracking_uri`.

    Raises RegistryError for an unknown version or a changed record, LedgerError when alias and ledger differ,
    StoreError, InputError when the Instruct cannot be resolved, GraftError when the result is not the registered model.
    `out` is then unchanged.
    """
    from shadowft_core.promotion import materialize

    return materialize(reference, Path(out), registry, store, None if instruct is None else Path(instruct))


def judge(
    scores: "Folder | Table | Sequence[Mapping[str, Any]]", candidate: str, thresholds: "Verdict | None" = None
) -> dict[str, Any]:
    """Decide whether the arm `candidate` should replace the untouched Instruct; returns the verdict, writes nothing.

    `scores` is the path of a parquet file, a table (pyarrow, pandas, polars: whatever exports Arrow streams) or a
    sequence of rows. It has a row for each arm and item: `suite` (`domain`, or the name of a guard), `task`, `item_id`,
    `arm` (`instruct` is the reference), `score`, and optionally `cluster` and `seed`. `thresholds` is the section
    `verdict` of params.yaml, in the unit of the scores; by default its defaults, for shares of right answers.

    The verdict has the fields of verdict.json, of which `decision` is `promote`, `hold` or `undecided`, and `reasons`
    says why. It is a first look at these items.

    Raises EvaluationError naming the row and the remedy when scores are missing or malformed, the arms did not answer
    the same items, or the candidate is not an arm that may ship.
    """
    from shadowft_core.params import Verdict
    from shadowft_core.verdict.itemfile import judge_items

    source = Path(scores) if isinstance(scores, str | os.PathLike) else scores
    return judge_items(source, candidate, thresholds or Verdict())
