"""Matches each tensor of a delta to tensors and rows of the Instruct, before any weight is read."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from shadowft_core.delta import DeltaSource
from shadowft_core.errors import MisfitError, QuantisedError, ShapeMismatchError, TensorMissingError, TokenMismatchError
from shadowft_core.weights import (
    EXPERT_NAMES,
    FLOATS,
    Checkpoint,
    Ignored,
    Runs,
    account,
    by_reason,
    fitted,
    match_rows,
    remedy,
    require_no_codes,
    require_one_sided,
    runs_of,
    token_marks,
)
from shadowft_core.weights.families.experts import Slot, View, all_views, expert_numbers, fused_name, views
from shadowft_core.weights.match import expert_runs


class Match:
    """Matches one delta to one Instruct.

    `tokens` has a record for each tensor matched by token, `ignored` the tensors that only one side has. `ignore` are
    patterns of such tensors from the command line, in addition to the delta's own.
    """

    def __init__(self, model: Checkpoint, delta: DeltaSource, ignore: Sequence[str] = ()) -> None:
        self.model, self.delta, self._patterns = model, delta, [*ignore, *delta.ignore]
        self.base = delta.base_sample()
        self.tokens: dict[str, dict[str, Any]] = {}
        self.ignored: Ignored = {}
        self.here = {name: model.named(name) for name in (*self.base, *delta.names)}
        """the Instruct's name for each tensor of the Base, tied copies under their own names; None if it lacks it"""

    def targets(self, name: str) -> dict[str, Runs | None]:
        """The Instruct's tensors that this tensor of the delta is added to, with their rows (None: all, one to one).

        The delta of a tied embedding is added to the Instruct's embedding, and to its head if that is stored or untied.
        Empty for the head of an untied Base if the Instruct is tied: the embedding must have the same delta.
        Raises TensorMissingError, ShapeMismatchError, TokenMismatchError, MisfitError, QuantisedError.
        """
        here = self.here[name]
        if here is None:
            return self._mixture(name)
        home = self.model.home(here)
        if home != here and (other := self._carrier(name, home)):
            self._require_equal(name, other)
            return {}
        targets = self._tied_to(home)
        if any(self.model.family.has_token_rows(target, self.model.info(target).shape) for target in targets):
            return {target: self._vocabulary(name, target) for target in targets}
        for target in targets:
            self._require_float(name, target)
            if self.model.info(target).shape != self.delta.shape(name):
                raise self._misshapen(name, target)
        return dict.fromkeys(targets)

    def is_ignored(self, name: str) -> bool:
        """Whether a tensor of the delta has no counterpart in the Instruct and a pattern waives it."""
        lacking = self.here[name] is None and fused_name(name) not in self._fused_names
        return lacking and any(fnmatchcase(name, pattern) for pattern in self._patterns)

    def require_same_tensors(self) -> None:
        """Check that Base and Instruct have the same tensors, except for heads, tied tensors and ignored ones.

        Fills `ignored`. Raises TensorMissingError.
        """
        ours = [n for n in self.model.names if self.model.info(n).dtype in FLOATS and self.model.info(n).size]
        met = {own for here in self.here.values() if here for own in (here, self.model.home(here))}
        kinds = {fused_name(name) for name in ours} & {fused_name(name) for name in self.here}
        alone = {
            "base": [n for n, here in self.here.items() if here is None],
            "instruct": [n for n in ours if n not in met and self.model.home(n) not in met],
        }
        alone = {
            side: [n for n in names if fused_name(n) not in kinds and not self._may_be_alone(n)]
            for side, names in alone.items()
        }
        refused, self.ignored = by_reason(alone, self._patterns, self.model.family.ignores, self.model.family.title)
        for side, having, lacking in (("base", "the Base", "the Instruct"), ("instruct", "the Instruct", "the Base")):
            if odd := refused.get(side):
                raise TensorMissingError(
                    f"{self.delta.path} on {self.model.path}: {having} has {odd[0]}, {lacking} does not ({len(odd)} in "
                    f"all); use an Instruct of the same family and size{remedy(refused, met)}"
                )

    def require_numbers(self) -> None:
        """Raise QuantisedError when the Instruct, unlike the Base, has tensors of quantised weights."""
        require_no_codes(set(self.model.names) - set(self.here.values()), self.model.path)

    def require_one_sided(self, patterns: Sequence[str]) -> None:
        """Raise InputError for a pattern that matches a delta's tensor with a counterpart in the Instruct."""
        placed = {name for name in self.delta.names if not self.is_ignored(name)}
        require_one_sided(patterns, placed, f"{self.delta.path} and {self.model.path}")

    def require_same_experts(self) -> None:
        """Raise TensorMissingError when Base and Instruct have different experts, as far as they can be counted."""
        found = expert_numbers({name: self.model.info(name).shape for name in self.model.names})
        had = expert_numbers(dict.fromkeys(self.base) | {name: self.delta.shape(name) for name in self.delta.names})
        for block in had.keys() & found.keys():
            if odd_ones := sorted(had[block] ^ found[block]):
                who = "the Base" if odd_ones[0] in had[block] else "the Instruct"
                raise TensorMissingError(
                    f"{self.delta.path} on {self.model.path}: only {who} has {block}.experts.{odd_ones[0]} "
                    f"({len(odd_ones)} such in all); use an Instruct with the same experts"
                )

    def _carrier(self, name: str, home: str) -> str | None:
        """The delta's tensor for `home`, which `name` is a tied copy of; None if a tied Base stored only the copy."""
        other = next((n for n in self.delta.names if n != name and self.here[n] == home), None)
        return other or (None if self.delta.base_tied else home)

    def _tied_to(self, home: str) -> list[str]:
        """The Instruct's tensors that get the delta of `home`: itself, stored copies, and what the Base tied to it."""
        family, found = self.model.family, [home]
        found += [alias for alias, own in self.model.ties.items() if own == home and alias in self.model]
        if self.delta.base_tied and (family.is_embedding(home) or family.is_head(home)):
            other = family.is_head if family.is_embedding(home) else family.is_embedding
            found += [n for n in self.model.names if other(n) and n not in found and not self._has_own(n, home)]
        return found

    def _has_own(self, name: str, home: str) -> bool:
        """Whether the Base had this tensor separately, not as a stored copy of `home`."""
        was = {here: values for n, here in self.here.items() if here and (values := self.base.get(n)) is not None}
        changed = any(self.here[n] == name for n in self.delta.names)
        return changed or (name in was and not (home in was and np.array_equal(was[name], was[home])))

    def _may_be_alone(self, name: str) -> bool:
        """Whether one side may lack this tensor: a head may be tied there, or represent the embedding."""
        family = self.model.family
        if self.delta.base_tied and family.is_embedding(name):
            return not any(family.is_embedding(other) for other in self.base)
        return family.is_head(name) or self.model.home(name) != name

    def _require_equal(self, head: str, embedding: str) -> None:
        same = embedding in self.delta.names and self.delta.shape(head) == self.delta.shape(embedding)
        if same:
            pairs = zip(self.delta.chunks(head), self.delta.chunks(embedding), strict=True)
            same = all(np.array_equal(one, other) for (_, one), (_, other) in pairs)
        if not same:
            raise MisfitError(
                f"{self.delta.path}: tensor {head} is a separate head, but {self.model.path} ties it to {embedding} "
                "and cannot take both deltas; exclude it with a scope, or use an untied Instruct"
            )

    @cached_property
    def _fused_names(self) -> set[str]:
        return {fused_name(name) for name in self.model.names}

    @cached_property
    def _marks(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Token marks of Instruct and Base."""
        return token_marks(self.model.path), self.delta.base_token_marks()

    @cached_property
    def _same_tokenizer(self) -> bool:
        if self.model.tokenizer_digest() == self.delta.tokenizer_digest:
            return True
        ours, theirs = self._marks
        return ours is not None and theirs is not None and np.array_equal(ours, theirs)

    def _vocabulary(self, name: str, target: str) -> Runs | None:
        self._require_float(name, target)
        shape, expected = self.delta.shape(name), self.model.info(target).shape
        if shape[1:] != expected[1:]:
            raise self._misshapen(name, target)
        if shape == expected and self._same_tokenizer:
            return None
        where = f"{self.delta.path}: tensor {name}"
        ours, theirs = self._marks
        if ours is None or theirs is None:
            side = self.model.path if ours is None else "the Base"
            raise TokenMismatchError(
                f"{where} has {shape[0]} rows, {self.model.path} {expected[0]}, and {side} has no tokenizer.json to "
                "match tokens; put the tokenizer into the model folder and extract again"
            )
        ours, theirs = fitted(ours, expected[0]), fitted(theirs, shape[0])
        rows = match_rows(ours, theirs, where)
        self.tokens[target] = account(rows, ours, theirs)
        return runs_of(rows)

    @cached_property
    def _views(self) -> dict[Slot, View]:
        return all_views({name: self.model.info(name).shape for name in self.model.names})

    def _mixture(self, name: str) -> dict[str, Runs | None]:
        """Targets of a tensor of experts that the Instruct stores in the other layout: the same matrices."""
        ours = views(name, self.delta.shape(name))
        lost = [slot for slot in ours if slot not in self._views]
        if not ours or len(lost) == len(ours):
            waiver = remedy({"base": [name]}, [known for known, here in self.here.items() if here])
            raise TensorMissingError(
                f"{self.delta.path}: tensor {name} is missing in {self.model.path}; graft on an Instruct of the same "
                f"family and layout{waiver}"
            )
        if lost:
            raise TensorMissingError(
                f"{self.delta.path}: tensor {name}: the {lost[0][2]} matrix of expert {lost[0][1]} is missing in "
                f"{self.model.path}; use an Instruct with the same experts"
            )
        family = self.model.config.get("model_type")
        if any(slot[-1] != "router" for slot in ours) and family not in EXPERT_NAMES:
            raise MisfitError(
                f"{self.delta.path}: tensor {name} has another layout in {self.model.path}, and the order of the "
                f"experts of {family!r} is unknown; save both models in the same layout"
            )
        for slot, view in ours.items():
            self._require_float(name, self._views[slot].tensor)
            if view.shape != self._views[slot].shape:
                raise self._misshapen(name, self._views[slot].tensor)
        return {**expert_runs(ours, self._views)}

    def _require_float(self, name: str, target: str) -> None:
        if target not in self.model:
            raise TensorMissingError(
                f"{self.delta.path}: tensor {name} is missing in {self.model.path}; graft on an Instruct of the same "
                "family and layout"
            )
        if self.model.info(target).dtype not in FLOATS:
            raise QuantisedError(
                f"{self.delta.path}: tensor {name}: {self.model.path} has it as {self.model.info(target).dtype}, "
                f"expected one of {', '.join(FLOATS)}; graft on the unquantised Instruct"
            )

    def _misshapen(self, name: str, target: str) -> ShapeMismatchError:
        return ShapeMismatchError(
            f"{self.delta.path}: tensor {name} has shape {self.delta.shape(name)}, {target} of {self.model.path} has "
            f"{self.model.info(target).shape}; use an Instruct of the same family and size"
        )
