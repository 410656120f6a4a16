"""What a grafted folder says of itself: recipe.json and receipt.json in one account, ordered for reading."""

from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object
from shadowft_core.graft.writer import RECEIPT, RECIPE

_OF_RECIPE = ("digest", "instruct", "deltas", "scope", "dtype", "merge", "scale_for", "waivers")


def read_receipt(folder: Path) -> dict[str, Any]:
    """The account of a folder made by `graft`, as recorded there; no weights are read.

    Returns `{"format": 1, "path", "digest", "instruct", "deltas", "scope", "dtype", "merge", "scale_for", "waivers",
    "regrafted_from", "onto_base", "classes", "retention", "tensors": [...], "untouched": {reason: [names]},
    "left_out": [names], "travel", "tokens": {name: {...}}, "ignored": {reason: {side: [names]}}}`.

    `retention` (null at scale 0) and every entry of `tensors` hold `weight_norm`, `delta_norm`, `relative` (their
    ratio; null for a zero weight) and, of the delta after the cast, `cosine`, `energy` and `unchanged`. Tensors that
    lost most energy come first, then those with the largest relative delta.

    `travel` (null where all of the delta travels) has `energy`, the share of the deltas' squared norms that is added to
    anything, and `stays`, the shares that are not, by the last word of the tensors' names. `ignored` is what only one
    side holds, and why that is no error: its class does not load it, or a person waived it by name.

    `tokens` has the tensors whose rows were matched by token: `matched` and `moved` count rows; `instruct_only`,
    `base_only` and `padding` hold `rows` and their `ids` as texts like `7` or `7-12`. Rows of tokens that only the
    Instruct has, and padding, stay as they were. `regrafted_from` is the digest of the recipe this one was made from,
    whose verdict does not count here, or null.

    Raises CheckpointError when the folder was not made by `graft`, or its record is damaged or of another format.
    """
    if missing := [name for name in (RECIPE, RECEIPT) if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder}: holds no {missing[0]}; pass a folder made by `graft`")
    recipe, receipt = (read_json_object(folder / name) for name in (RECIPE, RECEIPT))
    for name, record in ((RECIPE, recipe), (RECEIPT, receipt)):
        if record.get("format") != 1:
            raise CheckpointError(f"{folder / name}: format {record.get('format')!r}, 1 is wanted; graft again")
    try:
        tensors = [{"name": name, **_norms(kept)} for name, kept in receipt["grafted"].items()]
        tensors.sort(key=lambda kept: (kept["energy"], -(kept["relative"] or 0.0), kept["name"]))
        untouched: dict[str, list[str]] = {}
        for name, reason in sorted(receipt["untouched"].items()):
            untouched.setdefault(reason, []).append(name)
        return {
            "format": 1,
            "path": str(folder),
            **{key: recipe[key] for key in _OF_RECIPE},
            "regrafted_from": recipe.get("regrafted_from"),
            **{key: receipt[key] for key in ("onto_base", "classes", "left_out", "tokens")},
            "travel": receipt.get("travel"),
            "ignored": receipt.get("ignored", {}),
            "retention": _norms(receipt["retention"]) if receipt["retention"] else None,
            "tensors": tensors,
            "untouched": untouched,
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {RECIPE} or {RECEIPT} is damaged ({error!r}); graft again") from None


def _norms(kept: dict[str, float]) -> dict[str, float | None]:
    numbers = {key: float(kept[key]) for key in ("weight_norm", "delta_norm", "cosine", "energy", "unchanged")}
    relative = numbers["delta_norm"] / numbers["weight_norm"] if numbers["weight_norm"] else None
    return {**numbers, "relative": relative}
