"""Measures sigma (weights/similarity.py) of two models: by tensor, by layer, by kind of module, and overall.

The sigma of a group is the ratio of the sums over its weights. In a sample, every match is weighted by its number of
weights, so that the ratio estimates the full one.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from shadowft_core.errors import NotFiniteError, say
from shadowft_core.files import WORKERS, in_order
from shadowft_core.kernels import bf16
from shadowft_core.pair.grid import FOUR_BITS, count_levels
from shadowft_core.pair.layout import Match, Span
from shadowft_core.weights import CHUNK, FLOATS, Checkpoint, is_language, layer_of, module_of
from shadowft_core.weights.similarity import SIGMA, Sums

RANGE, RANGES = 1 << 13, 4  # of a sample: elements per range, and ranges per match
MOST_RANGES = 1 << 12  # of a whole sample, so that a large model costs no more than 64 MiB a side in bfloat16
ODD_SHARE = 0.05  # of the weights; a small matrix that happens to look like a grid proves nothing
REQUESTS = 16  # concurrent requests for ranges of remote weights


_Levels = tuple[float | None, float | None]
"""of Base and Instruct: the approximate number of levels of a matrix; see grid.py"""
_Read = tuple[Sums, tuple[dict[str, str], dict[str, str]], _Levels]
"""the result of a pass over a span: sums, digests (per side) of tensors read as a whole, and levels"""


@dataclass(frozen=True)
class Gap:
    """The sums of every match, by tensor of the Instruct, and the levels of every matrix."""

    matches: list[tuple[Match, dict[str, Sums]]]
    levels: dict[str, _Levels]

    @property
    def read(self) -> int:
        return sum(sums.count for _, found in self.matches for sums in found.values())

    @property
    def size(self) -> int:
        return sum(match.size for match, _ in self.matches)

    def over(self, selects: Callable[[str], bool] = lambda _: True) -> Sums:
        """The sums over the matches that `selects` picks by name, each weighted by its size."""
        return self._groups(lambda name: "" if selects(name) else None).get("", Sums())

    def by(self, key: Callable[[str], str | None]) -> dict[str, float]:
        """sigma of every group of matches with the same key; matches without a key are left out."""
        return {group: sums.sigma for group, sums in self._groups(key).items()}

    def _groups(self, key: Callable[[str], str | None]) -> dict[str, Sums]:
        groups: dict[str, Sums] = {}
        for match, found in self.matches:
            if (group := key(match.name)) is not None:
                factor = match.size / sum(sums.count for sums in found.values())
                for sums in found.values():
                    groups.setdefault(group, Sums()).add(sums, factor)
        return groups

    def unrelated(self, far: float) -> list[tuple[str, float]]:
        """Tensor and sigma of every matrix of the language model with a sigma above `far`."""
        return [
            (tensor, sums.sigma)
            for match, found in self.matches
            if match.matrix and is_language(match.name)
            for tensor, sums in found.items()
            if sums.sigma > far
        ]

    def grid(self, side: int) -> str:
        """The evidence that side 0, the Base, or 1, the Instruct, was dequantised; empty when there is none."""
        sizes = {match.name: match.size for match, _ in self.matches if match.name in self.levels}
        found = {name: count for name in sizes if (count := self.levels[name][side])}
        if sum(sizes[name] for name in found) <= ODD_SHARE * sum(sizes.values()):
            return ""
        count = float(np.median(list(found.values())))
        kind = "4 bits or fewer (int4, nf4, mxfp4)" if count <= FOUR_BITS else "8 bits (int8, fp8)"
        return f"{len(found)} of {len(sizes)} matrices are on a grid of {kind}, the first is {next(iter(found))}"

    def report(self, aggregations: bool) -> dict[str, Any]:
        """`{"definition", "overall", "layers", "modules", "tensors", "weights": {"read", "of"}}`.

        For a model with a vision part, layers and modules are those of the language model, `language` is its sigma, and
        `vision` has overall, layers and modules of the other parts.
        """
        report: dict[str, Any] = {
            "definition": SIGMA,
            "overall": self.over().sigma,
            "layers": self.by(lambda name: layer_of(name) if is_language(name) else None),
            "modules": self.by(lambda name: module_of(name) if is_language(name) else None),
            "tensors": self.by(str),
            "weights": {"read": self.read, "of": self.size},
        }
        vision = self.over(lambda name: not is_language(name))
        if vision.count:
            report["language"] = self.over(is_language).sigma
            report["vision"] = {
                "overall": vision.sigma,
                "layers": self.by(lambda name: None if is_language(name) else layer_of(name)),
                "modules": self.by(lambda name: None if is_language(name) else module_of(name)),
            }
        if aggregations:
            report["aggregations"] = self.aggregations()
        return report

    def aggregations(self) -> dict[str, dict[str, Any]]:
        """The three figures that the authors call sigma; they are not comparable."""
        inside = [
            sums.sigma
            for match, found in self.matches
            if is_language(match.name) and layer_of(match.name)
            for sums in found.values()
        ]
        return {
            "mean_over_layer_tensors": {
                "value": float(f"{np.mean(inside):.9g}") if inside else None,
                "definition": "unweighted mean of sigma over the tensors of the layers (model.layers.*)",
                "source": "Shadow-FT repository, sigma_v2.py",
            },
            "ratio_over_all_tensors": {
                "value": self.over().sigma,
                "definition": "ratio of sums over all tensors",
                "source": "co-author's follow-up repository LLM-NEO-bk, shadow_rl/merge.py",
            },
            "ratio_over_language_model": {
                "value": self.over(is_language).sigma,
                "definition": "ratio of sums over the language model, without vision and audio parts",
                "source": "independent replication on gemma-3-4b",
            },
        }


def measure(base: Checkpoint, instruct: Checkpoint, matches: list[Match], full: bool, hashed: bool = False) -> Gap:
    """Read both sides, all weights or a sample, several pieces at a time and in chunks.

    With `hashed`, which needs `full`, both checkpoints then have the digests of all tensors that were read as a whole.
    Raises NotFiniteError for NaN or infinity, CheckpointError when a file ends early.
    """
    pieces = [
        (number, span)
        for number, match in enumerate(matches)
        if instruct.info(match.spans[0].instruct).dtype in FLOATS
        for span in (match.spans if full else _sample(match, len(matches)))
        if span.size
    ]
    largest_first = sorted(
        range(len(pieces)), key=lambda at: -pieces[at][1].size
    )  # so that all workers finish together

    largest: dict[int, int] = {}  # the largest piece of each matrix, in which its levels are counted
    for at in reversed(largest_first):
        if matches[pieces[at][0]].matrix:
            largest[pieces[at][0]] = at

    def act(at: int) -> tuple[_Read, bytes]:
        return _read(base, instruct, pieces[at][1], hashed, largest.get(pieces[at][0]) == at), b""

    found: dict[int, Sums] = {}
    levels: dict[str, _Levels] = {}
    remote = base.remote or instruct.remote
    with ThreadPoolExecutor(REQUESTS if remote else WORKERS) as pool:
        waits = remote or not full  # for a network or a disk rather than for a core
        results = pool.map(act, largest_first) if waits else in_order(act, largest_first)
        for at, ((sums, digests, on_grid), _) in zip(largest_first, results, strict=True):
            found[at] = sums
            if largest.get(number := pieces[at][0]) == at:
                levels[matches[number].name] = on_grid
            for model, learnt in zip((base, instruct), digests, strict=True):
                model.add_digests(learnt)
            if len(found) % (100 if full else 1000) == 0:
                say(f"pair: {'tensor' if full else 'range'} {len(found)}/{len(pieces)} compared")
    together: list[dict[str, Sums]] = [{} for _ in matches]
    for at, (number, span) in enumerate(pieces):
        together[number].setdefault(span.instruct, Sums()).add(found[at])
    return Gap([(match, sums) for match, sums in zip(matches, together, strict=True) if sums], levels)


def _sample(match: Match, matches: int) -> list[Span]:
    """A few evenly spread ranges of a match, or all of it when it is small."""
    ranges = max(1, min(RANGES, MOST_RANGES // matches))
    if match.size <= ranges * RANGE:
        return match.spans
    ends = list(accumulate(span.size for span in match.spans))
    chosen: dict[Span, None] = {}
    for number in range(ranges):
        middle = (2 * number + 1) * match.size // (2 * ranges)
        place = int(np.searchsorted(ends, middle, side="right"))
        span = match.spans[place]
        inside = middle - (ends[place] - span.size) - RANGE // 2
        start = max(0, min(inside, span.size - RANGE))
        size = min(RANGE, span.size)
        chosen[Span(span.base, span.base_start + start, span.instruct, span.instruct_start + start, size)] = None
    return list(chosen)


def _read(base: Checkpoint, instruct: Checkpoint, span: Span, hashed: bool, with_levels: bool) -> _Read:
    """Make one pass over a span; `with_levels` also counts the levels of its first weights."""
    sums, sides = np.zeros(3), ((base, span.base, span.base_start), (instruct, span.instruct, span.instruct_start))
    found: _Levels = (None, None)
    for ours, theirs in zip(*(_blocks(*side, span.size, hashed) for side in sides), strict=True):
        sums += bf16.distance(ours, theirs)
        if with_levels:
            widths = (model.info(name).shape[-1] for model, name, _ in sides)
            found = (count_levels(ours, next(widths)), count_levels(theirs, next(widths)))
            with_levels = False
    for (model, name, _), side in zip(sides, sums[1:], strict=True):
        if not np.isfinite(side):
            raise NotFiniteError(f"tensor {name} of {model.path} holds NaN or infinity; use intact models")
    base_digests, instruct_digests = (
        {name: model.tensor_digest(name)} if hashed and _whole(model, name, first, span.size) else {}
        for model, name, first in sides
    )
    apart, ours, theirs = sums.tolist()
    return Sums(apart, ours + theirs, span.size), (base_digests, instruct_digests), found


def _whole(model: Checkpoint, name: str, first: int, size: int) -> bool:
    return not model.remote and (first, size) == (0, model.info(name).size)


def _blocks(model: Checkpoint, name: str, first: int, size: int, hashed: bool) -> Iterator[np.ndarray]:
    """`size` elements of a tensor from `first` on, in their own dtype, CHUNK at a time."""
    if _whole(model, name, first, size):
        return (part for _, part in model.chunks(name, CHUNK, hashed=hashed))
    return (model.part(name, first + at, min(CHUNK, size - at)) for at in range(0, size, CHUNK))
