"""Checks that the timed results are right: weights bit by bit, and sigma against torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shadowft_core.errors import GraftError, PairError
from shadowft_core.weights import CHUNK, open_checkpoint

ORACLE = "state-dicts"
BITS_OF = ("one-pass", "first", "extract+graft", "graft", "graft-bfloat16")  # must equal the oracle bit for bit
SIGMA_TOLERANCE = 1e-5  # relative: torch sums a tensor in float32
PRODUCT_NOISE = 1e-8  # of a float32 sum over 128 products whose total is about 1e-4


@dataclass(frozen=True)
class Difference:
    """For two checkpoints: counts of weights, of those that differ, and by more than one bfloat16 step."""

    ours: str
    theirs: str
    weights: int
    differing: int
    beyond_one_step: int

    def sentence(self) -> str:
        if not self.differing:
            return f"`{self.ours}` equals `{self.theirs}` bit for bit, all {self.weights:,} weights"
        return (
            f"`{self.ours}` differs from `{self.theirs}` in {self.differing:,} of {self.weights:,} weights, "
            f"in {self.beyond_one_step:,} by more than one step of bfloat16"
        )


def compare(ours: tuple[str, Path], theirs: tuple[str, Path]) -> Difference:
    """Compare two bfloat16 checkpoints whatever their shards. Raises GraftError when names or shapes differ."""
    x, y = open_checkpoint(ours[1]), open_checkpoint(theirs[1])
    layouts = [{name: (m.info(name).dtype, m.info(name).shape) for name in m.names} for m in (x, y)]
    if layouts[0] != layouts[1]:
        odd = sorted(n for n in layouts[0].keys() | layouts[1].keys() if layouts[0].get(n) != layouts[1].get(n))
        raise GraftError(f"{odd[0]} is {layouts[0].get(odd[0])} by {ours[0]}, {layouts[1].get(odd[0])} by {theirs[0]}")
    weights = differing = beyond = 0
    for name in x.names:
        for (_, u), (_, v) in zip(x.chunks(name, CHUNK), y.chunks(name, CHUNK), strict=True):
            weights += u.size
            apart = u.view(np.uint16) != v.view(np.uint16)
            differing += int(np.count_nonzero(apart))
            a, b = u[apart].astype(np.float32), v[apart].astype(np.float32)
            with np.errstate(invalid="ignore"):
                step = np.maximum(np.abs(a), np.abs(b)) * np.float32(2**-7)
                beyond += int(np.count_nonzero(~(np.abs(a - b) <= step + np.float32(PRODUCT_NOISE))))  # NaN counts
    return Difference(ours[0], theirs[0], weights, differing, beyond)


def check_results(results: dict[str, Path]) -> list[Difference]:
    """Compare every model that a case made. Raises GraftError when the graft is wrong.

    Dense grafts must equal the float32 oracle in every bit; the LoRA graft may be one rounding step away from PEFT,
    which sums the product of the factors in float32, ours in float64.
    """
    pairs = [(name, ORACLE) for name in BITS_OF]
    pairs += [("one-pass", peer) for peer in ("mergekit",) if peer in results]
    found = []
    for ours, theirs in [*pairs, ("lora", "peft")]:
        one = compare((ours, results[ours]), (theirs, results[theirs]))
        if (theirs == ORACLE and one.differing) or (theirs == "peft" and one.beyond_one_step):
            raise GraftError(f"{one.sentence()}; no result is written, the graft is wrong")
        found.append(one)
    return found


def check_sigma(ours: float, theirs: float) -> str:
    """Raises PairError when the two figures differ by more than float32 sums explain."""
    if not abs(ours - theirs) <= SIGMA_TOLERANCE * abs(theirs):
        raise PairError(f"sigma is {ours} by the pair check, {theirs} by torch; no result is written")
    return f"sigma is {ours:.9g} by the pair check, {theirs:.9g} by torch"
