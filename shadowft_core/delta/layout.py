"""Matches a tuned checkpoint's tensors to those of its Base.

Refuses tensors without a counterpart, naming the cause.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shadowft_core.errors import ShapeMismatchError, TensorMissingError, TokenMismatchError
from shadowft_core.weights import (
    Checkpoint,
    Ignored,
    account,
    by_reason,
    fitted,
    match_rows,
    remedy,
    require_equal,
    require_met,
    require_no_codes,
    require_one_sided,
    token_marks,
)

WRAPPERS = {
    "_orig_mod": "the saved model was wrapped by torch.compile; save the inner one (model._orig_mod)",
    "module": "a parallel wrapper was saved; save the inner model (model.module)",
}
GATHER = "gather the weights when saving (stage3_gather_16bit_weights_on_model_save, zero_to_fp32.py)"


class Layout(NamedTuple):
    """How the tensors of a tuned model correspond to its Base's."""

    tuned: dict[str, str]
    """the tuned model's name for each tensor of the Base, tied copies excluded"""
    rows: dict[str, np.ndarray]
    """for each tensor of the Base matched by token: the tuned model's row for each row, -1 for none"""
    tokens: dict[str, dict[str, Any]]
    """for each tensor in `rows`: the record of the match"""
    ignored: Ignored
    """tensors that only one side has"""


def layout(before: Checkpoint, after: Checkpoint, ignore: Sequence[str] = (), standing: Sequence[str] = ()) -> Layout:
    """Match the tensors of two checkpoints.

    `ignore` are patterns of tensors that only one side has, from the command line; each must match. `standing` are the
    patterns of params.yaml, which need not match here.

    Raises TensorMissingError, ShapeMismatchError, TokenMismatchError, QuantisedError, InputError for a pattern that
    matches the wrong tensors, CheckpointError for ties that the weights contradict.
    """
    base_names, tuned_names = _stored_tensors(before), _stored_tensors(after)
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in base_names:
        named = after.named(name, before.family)
        if named is not None and (home := after.home(named)) not in taken:
            found[name] = home
            taken.add(home)
    only = {"base": set(base_names) - found.keys(), "tuned": set(tuned_names) - taken}
    both, where = found.keys() | taken, f"{before.path} and {after.path}"
    require_one_sided([*ignore, *standing], both, where)
    left, ignored = by_reason(
        only, [*ignore, *standing], lambda n: before.family.ignores(n) or after.family.ignores(n), after.family.title
    )
    require_met(ignore, ignored, where)
    if left:
        raise _lacking(before, after, left, both)
    rows: dict[str, np.ndarray] = {}
    tokens: dict[str, dict[str, Any]] = {}
    for name, tuned_name in found.items():
        old, new = before.info(name).shape, after.info(tuned_name).shape
        if old == new:
            continue
        if before.family.has_token_rows(name, old) and old[1:] == new[1:] and new[0]:
            rows[name], tokens[name] = _by_token(before, after, name, old[0], new[0])
        else:
            raise _misshapen(before, after, name, old, new)
    return Layout(found, rows, tokens, ignored)


def _stored_tensors(model: Checkpoint) -> list[str]:
    """Names without stored tied copies. Raises CheckpointError if such a copy differs from the tensor it is tied to."""
    require_equal(model)
    return [name for name in model.names if model.home(name) == name]


def _lacking(
    before: Checkpoint, after: Checkpoint, left: Mapping[str, Sequence[str]], both: Collection[str]
) -> TensorMissingError:
    """The error for tensors that only one side has, with the cause if it is evident, else the waiver.

    Raises QuantisedError when such a tensor belongs to quantised weights.
    """
    models = {"base": before, "tuned": after}
    odd = " and ".join(f"only {models[side].path} has {n[0]} ({len(n)} in all)" for side, n in left.items())
    for side, names in left.items():
        require_no_codes(names, models[side].path)
    if cause := next(_causes(before, after, left), None):
        return TensorMissingError(f"{odd}; {cause}")
    if len(left) > 1 and {before.info(n).shape for n in left["base"]} & {after.info(n).shape for n in left["tuned"]}:
        waiver = ""  # perhaps one tensor with two names: ignoring both would drop trained weights
    else:
        waiver = remedy(left, both)
    return TensorMissingError(f"{odd}; pass the model that was tuned, with the same tensor names{waiver}")


def _causes(before: Checkpoint, after: Checkpoint, left: Mapping[str, Sequence[str]]) -> Iterator[str]:
    models = {"base": before, "tuned": after}
    for wrapper, cause in WRAPPERS.items():
        for side, names in left.items():
            other = models["tuned" if side == "base" else "base"]
            inner = [re.sub(rf"(^|(?<=\.)){wrapper}\.", "", name) for name in names]
            if all(one != name and other.named(one) for one, name in zip(inner, names, strict=True)):
                yield cause
    for name in left.get("tuned", ()):
        if (home := before.home(name)) != name or (before.head_is_tied and after.family.is_head(name)):
            yield _untied(before, after, name, home)
    for name in left.get("base", ()):
        if (home := after.home(name)) != name:
            yield (
                f"{before.path} has a separate head, {after.path} ties {name} to {home}; save the tuned model "
                "untied (tie_word_embeddings false) with a separate head"
            )
    if before.family.title != after.family.title:
        yield (
            f"{before.path} is {before.family.title}, {after.path} is {after.family.title}: only a part of the model, "
            "or another class, was saved; save the whole model with the Base's class, or pass the Base of this part"
        )
    for longer, shorter in (("tuned", "base"), ("base", "tuned")):
        first = next(iter(left.get(longer, ())), "")
        for name in left.get(shorter, ()):
            start = first.removesuffix(name)
            if start.endswith(".") and all(one.startswith(start) for one in left[longer]):
                yield f"the names of {models[longer].path} begin with {start}; save both models in the same way"


def _untied(before: Checkpoint, after: Checkpoint, name: str, home: str) -> str:
    """The cause: the tuned model has a separate head, the Base has none, and a delta stores one tensor for both."""
    embedding = home if home != name else next((h for h in before.ties.values()), name)
    other = after.named(embedding, before.family) or embedding
    same = other in after and after.info(other).shape == after.info(name).shape and after.equal(other, name)
    tied = f"{before.path} ties {name} to {embedding}, {after.path} does not"
    if same:
        return f"{tied}, yet the two are equal; set tie_word_embeddings to true in the config.json of the tuned model"
    return (
        f"{tied} and trained a separate head, which the delta cannot store; untie the Base before tuning "
        f"(store {embedding} as {name} too, tie_word_embeddings false), and the Instruct as well"
    )


def _by_token(
    before: Checkpoint, after: Checkpoint, name: str, had: int, has: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """The tuned model's row for every row of the Base, and the record of the match."""
    marks = {model: token_marks(model.path) for model in (before, after)}
    for model, found in marks.items():
        if found is None:
            raise TokenMismatchError(
                f"tensor {name}: {before.path} has {had} rows, {after.path} {has}, and {model.path} has no "
                "tokenizer.json to match their tokens by; put the tokenizer it was trained with into that folder"
            )
    base_marks, tuned_marks = fitted(marks[before], had), fitted(marks[after], has)  # type: ignore[arg-type]
    rows = match_rows(base_marks, tuned_marks, f"{after.path}: tensor {name}", ("Base", "tuned model"))
    return rows, account(rows, base_marks, tuned_marks, ("base", "tuned"))


def _misshapen(
    before: Checkpoint, after: Checkpoint, name: str, old: tuple[int, ...], new: tuple[int, ...]
) -> ShapeMismatchError:
    for model, shape, other in ((before, old, new), (after, new, old)):
        if 0 in shape and 0 not in other:
            return ShapeMismatchError(
                f"tensor {name}: {before.path} has {old}, {after.path} {new}: it is empty in {model.path}, as ZeRO-3 "
                f"leaves it; {GATHER}"
            )
    return ShapeMismatchError(
        f"tensor {name}: {before.path} has {old}, {after.path} {new}; pass the model that was tuned"
    )
