"""The champions as arms of a run: the one in service, and the best earlier one on these items.

A challenger may be worse than the champion by less than a margin. If it were compared with the last champion only,
nearly a margin could be lost with each promotion. So it is also compared with the best champion so far on the items of
this run.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from shadowft_core.errors import (
    CheckpointError,
    DeltaError,
    GraftError,
    MisfitError,
    StoreCorruptError,
    say,
)
from shadowft_core.evaluate import NotRebuiltError, TaskScore, Versions, open_versions
from shadowft_core.files import new_folder, write_json_atomically
from shadowft_core.params import Evaluate, Registry, Render, Store
from shadowft_core.promotion.looks import ItemSet, Looks
from shadowft_core.promotion.recorded import Champions, Version, champions_on, fetched, lost, skip
from shadowft_core.verdict.scorefiles import read_head
from shadowft_core.verdict.scores import read_arm
from shadowft_core.weights import open_checkpoint

CHAMPION, BEST = "champion", "best_champion"
CONSIDERED = "champions.json"
_LOST = (StoreCorruptError, DeltaError, GraftError, MisfitError, CheckpointError, NotRebuiltError)


def score_champions(
    registry: Registry, store: Store, evaluate: Evaluate, render: Render, instruct: Path, data: Path, out: Path
) -> None:
    """Score the champion of `registry.name`, if it is a graft on this Instruct, and write
    `out/champion/{scores.json,items.jsonl}`.

    Among the earlier champions on this Instruct, the one with the best domain mean on these items is written to
    `out/best_champion/` if it is better than the champion. Means that looks at these items recorded are taken from
    there; other champions are rebuilt and scored, on the domain only. `out/champions.json` lists all of them, and those
    that cannot be rebuilt, with the reason; it is absent without earlier champions. If there is nothing to score, `out`
    is removed.

    Raises what `open_versions` and `Versions.write` raise; RegistryError if the recipe of the champion is missing,
    LedgerError, store errors.
    """
    digest = open_checkpoint(instruct).digest()
    found = champions_on(registry, store, digest)
    if found.absent:
        _say(f"{found.absent}; {'it is not scored' if found.earlier else 'no champion is scored'}")
    for gone in found.skipped:
        _say_skipped(gone)
    if found.current is None and not found.earlier:
        if any((out / name).is_file() for name in (f"{CHAMPION}/scores.json", f"{BEST}/scores.json", CONSIDERED)):
            shutil.rmtree(out)
            _say(f"{out}: removed, because its scores are those of an earlier champion; no champion is scored")
        return
    with ExitStack() as stack:
        deltas = stack.enter_context(fetched(found.current, store)) if found.current else []
        versions = stack.enter_context(open_versions(instruct, data, evaluate, 1 + len(found.earlier), render))
        folder = stack.enter_context(new_folder(out))
        _Arms(found, versions, Looks(store, digest), store, folder).write(deltas)


class _Arms:
    """The arms of one run, written to a folder."""

    def __init__(self, found: Champions, versions: Versions, looks: Looks, store: Store, folder: Path) -> None:
        self._found, self._versions, self._looks, self._store = found, versions, looks, store
        self._folder = folder
        self._skipped = {gone["digest"]: gone for gone in found.skipped}
        self._means: dict[str, float] = {}

    def write(self, deltas: Sequence[tuple[Path, float]]) -> None:
        """Write all arms; `deltas` are those of the champion."""
        current, bar = self._found.current, -math.inf
        if current is not None:
            self._versions.write(self._folder, CHAMPION, deltas, current.recipe, current.version)
            bar = self._mean_of(CHAMPION)
            self._means[current.digest] = bar
            self._know(ItemSet.of_arm(read_arm(self._folder / CHAMPION)))
        for one in self._found.earlier:
            if one.digest not in self._means:
                self._measure(one)
        ranked = [one for one in self._found.earlier if one.digest in self._means]
        for one in sorted(ranked, key=lambda one: -self._means[one.digest]):
            if self._means[one.digest] <= bar:
                break
            if self._write_best(one, bar):
                break
        self._write_considered()

    def _know(self, items: ItemSet) -> None:
        """Take the means that looks recorded."""
        known = self._looks.means(items)
        self._means = {
            one.digest: known[one.digest] for one in self._found.earlier if one.digest in known
        } | self._means

    def _measure(self, one: Version) -> None:
        """Rebuild a version and score it on the domain."""
        first = not self._means
        if self._lost(one):
            return
        try:
            with fetched(one, self._store) as deltas:
                scores = self._versions.domain(deltas, one.recipe, one.version)
        except _LOST as error:
            self._skip(one, error)
            return
        self._means[one.digest] = math.fsum(score.mean for score in scores.values()) / len(scores)
        if first:  # the champion was not scored, so the items were not known
            self._know(_items_among(scores, *self._versions.asked))

    def _write_best(self, one: Version, bar: float) -> bool:
        """Score a version on all tasks; whether it is the best, which a recorded mean of another machine may not be."""
        if self._lost(one):
            return False
        try:
            with fetched(one, self._store) as deltas:
                self._versions.write(self._folder, BEST, deltas, one.recipe, one.version)
        except _LOST as error:
            self._skip(one, error)
            return False
        if (mean := self._mean_of(BEST)) > bar:
            _say(f"version {one.version}: was better on these items, {mean:.4g} on the domain; scored as {BEST}")
            return True
        shutil.rmtree(self._folder / BEST)
        return False

    def _lost(self, one: Version) -> bool:
        """Whether the deltas of a version are gone."""
        if reason := lost(one, self._store):
            self._skip(one, reason)
        return bool(reason)

    def _skip(self, one: Version, error: object) -> None:
        self._means.pop(one.digest, None)
        self._skipped[one.digest] = skip(one.version, one.digest, error)
        _say_skipped(self._skipped[one.digest])

    def _mean_of(self, arm: str) -> float:
        return read_head(self._folder / arm).domain_mean

    def _write_considered(self) -> None:
        if not self._found.earlier and not self._skipped:
            return
        versions = [*filter(None, [self._found.current]), *self._found.earlier]
        considered = [
            {"version": one.version, "digest": one.digest, "mean": self._means[one.digest]}
            for one in versions
            if one.digest in self._means
        ]
        skipped = sorted(self._skipped.values(), key=lambda gone: -int(gone["version"]))
        facts = {"format": 1, "considered": considered, "skipped": skipped}
        write_json_atomically(self._folder / CONSIDERED, facts)


def _items_among(scores: Mapping[str, TaskScore], template: str, generation: Mapping[str, Any]) -> ItemSet:
    tasks = {
        name: (score.metric, [item.item for item in score.items], [item.about for item in score.items])
        for name, score in scores.items()
    }
    return ItemSet.of(template, generation, tasks)


def _say(line: str) -> None:
    say(f"evaluate: {line}")


def _say_skipped(gone: Mapping[str, Any]) -> None:
    _say(f"earlier champion, version {gone['version']}: skipped: {gone['reason']}")
