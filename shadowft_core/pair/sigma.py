"""sigma, the distance between two models: sum|B - I| / (sum|B| + sum|I|), 0 for equal and 1 for unrelated.

Definition: Shadow-FT (arXiv 2505.12716), section 3. A group (a tensor, a layer, a kind of module, everything) is the
ratio of the sums over its weights. In a sample every match counts with its number of weights, so that the ratio is an
estimate of the full one.
"""

import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from shadowft_core.checkpoint import CHUNK, FLOATS, WORKERS, Checkpoint
from shadowft_core.errors import NotFinite
from shadowft_core.pair.layout import Match, Span

DEFINITION = "sum|B - I| / (sum|B| + sum|I|), the sums over all weights of the group"
_WIDTH = 1 << 10  # sums run down columns of so many lanes: few float32 additions behind each other, and vector code
RANGE, RANGES = 1 << 13, 4  # of a sample: elements per range, and ranges per match
MOST_RANGES = 1 << 12  # of a whole sample, so that a large model costs no more than 64 MiB a side in bfloat16
REQUESTS = 16  # ranges under way at once when they come over a network
_VISION = re.compile(
    r"(^|\.)(visual|vision\w*|image\w*|multi_modal\w*|mm_projector|embed_vision|audio\w*|embed_audio)\."
)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


@dataclass
class Sums:
    """What was read of one tensor of the Instruct: sum|B - I|, sum|B| + sum|I|, and the number of weights."""

    apart: float = 0.0
    total: float = 0.0
    count: int = 0

    def add(self, other: "Sums", factor: float = 1.0) -> None:
        self.apart += factor * other.apart
        self.total += factor * other.total
        self.count += other.count

    @property
    def sigma(self) -> float:
        return float(f"{self.apart / self.total:.9g}") if self.total else 0.0


@dataclass(frozen=True)
class Gap:
    """The sums of every match, by tensor of the Instruct, and what the names tell of it."""

    matches: list[tuple[Match, dict[str, Sums]]]

    @property
    def read(self) -> int:
        return sum(sums.count for _, found in self.matches for sums in found.values())

    @property
    def size(self) -> int:
        return sum(match.size for match, _ in self.matches)

    def over(self, wanted: Callable[[str], bool] = lambda _: True) -> Sums:
        """The sums over the matches of these names, every match with the weight of its size."""
        return self._groups(lambda name: "" if wanted(name) else None).get("", Sums())

    def by(self, key: Callable[[str], str | None]) -> dict[str, float]:
        """sigma of every group: matches of the same key; those without a key stand in none."""
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
        """Tensor and sigma of every matrix of the language model that lies further apart than `far`."""
        return [
            (tensor, sums.sigma)
            for match, found in self.matches
            if match.matrix and is_language(match.name)
            for tensor, sums in found.items()
            if sums.sigma > far
        ]

    def report(self, aggregations: bool) -> dict[str, Any]:
        """`{"definition", "overall", "layers", "modules", "tensors", "weights": {"read", "of"}}`.

        A model with a vision part adds `language`, a figure, and `vision`, with figures of its own; layers and modules
        are then those of the language model.
        """
        report: dict[str, Any] = {
            "definition": DEFINITION,
            "overall": self.over().sigma,
            "layers": self.by(lambda name: _layer(name) if is_language(name) else None),
            "modules": self.by(lambda name: _module(name) if is_language(name) else None),
            "tensors": self.by(str),
            "weights": {"read": self.read, "of": self.size},
        }
        vision = self.over(lambda name: not is_language(name))
        if vision.count:
            report["language"] = self.over(is_language).sigma
            report["vision"] = {
                "overall": vision.sigma,
                "layers": self.by(lambda name: None if is_language(name) else _layer(name)),
                "modules": self.by(lambda name: None if is_language(name) else _module(name)),
            }
        if aggregations:
            report["aggregations"] = self.aggregations()
        return report

    def aggregations(self) -> dict[str, dict[str, Any]]:
        """The three figures that go by the name of sigma in the authors' circle; they are not comparable."""
        inside = [
            sums.sigma
            for match, found in self.matches
            if is_language(match.name) and _layer(match.name)
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


def is_language(name: str) -> bool:
    """Whether a tensor belongs to the language model rather than to a vision or audio part or its projector."""
    return _VISION.search(name) is None


def measure(base: Checkpoint, instruct: Checkpoint, matches: list[Match], full: bool, hashed: bool = False) -> Gap:
    """Read both sides, all of them or a sample, two threads at a time and in chunks.

    With `hashed`, which wants `full`, the digests of all tensors that were read whole stay behind in both checkpoints.
    Raises NotFinite for NaN or infinity, CheckpointError when a file ends early.
    """
    pieces = [
        (number, span)
        for number, match in enumerate(matches)
        if instruct.info(match.spans[0].instruct).dtype in FLOATS
        for span in (match.spans if full else _sample(match, len(matches)))
        if span.size
    ]
    found: list[dict[str, Sums]] = [{} for _ in matches]
    with ThreadPoolExecutor(REQUESTS if base.away or instruct.away else WORKERS) as pool:
        results = pool.map(lambda piece: _sums(base, instruct, piece[1], hashed), pieces)
        for done, ((number, span), sums) in enumerate(zip(pieces, results, strict=True), 1):
            found[number].setdefault(span.instruct, Sums()).add(sums)
            if done % (100 if full else 1000) == 0:
                print(f"pair: {'tensor' if full else 'range'} {done}/{len(pieces)} compared", file=sys.stderr)
    return Gap([(match, sums) for match, sums in zip(matches, found, strict=True) if sums])


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


def _sums(base: Checkpoint, instruct: Checkpoint, span: Span, hashed: bool) -> Sums:
    """One pass over a span: float32 sums of short columns, float64 from there on."""
    rows = -(-min(CHUNK, span.size) // _WIDTH)
    scratch = np.empty((3, rows * _WIDTH), np.float32)
    b, i, apart = scratch
    sums = Sums(count=span.size)
    sides = [0.0, 0.0]
    with np.errstate(invalid="ignore", over="ignore"):
        for ours, theirs in zip(
            _blocks(base, span.base, span.base_start, span.size, hashed),
            _blocks(instruct, span.instruct, span.instruct_start, span.size, hashed),
            strict=True,
        ):
            size = ours.size
            if size < b.size:
                scratch[:, size:] = 0
            np.copyto(b[:size], ours)
            np.copyto(i[:size], theirs)
            np.subtract(b, i, out=apart)
            sums.apart += _absolute_sum(apart)
            sides[0] += _absolute_sum(b)
            sides[1] += _absolute_sum(i)
    for model, name, side in zip((base, instruct), (span.base, span.instruct), sides, strict=True):
        if not np.isfinite(side):
            raise NotFinite(f"tensor {name} of {model.path} holds NaN or infinity; use intact models")
    sums.total = sides[0] + sides[1]
    return sums


def _absolute_sum(values: np.ndarray) -> float:
    np.abs(values, out=values)
    return float(np.add.reduce(values.reshape(-1, _WIDTH), axis=0).sum(dtype=np.float64))


def _blocks(model: Checkpoint, name: str, first: int, size: int, hashed: bool) -> Iterator[np.ndarray]:
    """`size` elements of a tensor from `first` on, in their own dtype, CHUNK at a time."""
    if not model.away and (first, size) == (0, model.info(name).size):
        return (part for _, part in model.chunks(name, CHUNK, hashed=hashed))
    return (model.part(name, first + at, min(CHUNK, size - at)) for at in range(0, size, CHUNK))


def _layer(name: str) -> str | None:
    found = _LAYER.search(name)
    return found[1] if found else None


def _module(name: str) -> str:
    return re.sub(r"\.(weight|bias)$", "", name).rsplit(".", 1)[-1]
