"""Checks on a sample, before anything is written, that the Instruct is related to the delta's Base but is not it."""

import numpy as np

from shadowft_core.delta import sample_positions
from shadowft_core.errors import OntoBaseError, UnrelatedError
from shadowft_core.grafting.match import Match
from shadowft_core.grafting.options import ONTO_BASE, UNRELATED, Options
from shadowft_core.weights import FLOATS
from shadowft_core.weights.similarity import (
    SAMPLE_SIZE,
    SIGMA_UNRELATED,
    SIGMA_UNRELATED_MATRIX,
    Sums,
    sums_of,
)


def require_related(match: Match, options: Options) -> None:
    """Compare the delta's sample of its Base (`DeltaSource.base_sample`) with the Instruct, by sigma.

    Only matrices count, because the weights of norms are near 1 in every model. Embeddings and heads are left out,
    because their rows may be in another order. Raises UnrelatedError when sigma is above SIGMA_UNRELATED, when sigma of
    one matrix that the delta changes is above SIGMA_UNRELATED_MATRIX, or when no tensor can be compared. Raises
    OntoBaseError when the Instruct is the delta's Base. Each error has a waiver.
    """
    model, delta = match.model, match.delta
    overall = Sums()
    equal, compared, odd = True, False, ""
    for name, theirs in match.base.items():
        here = match.here[name]
        if here is None or (info := model.info(model.home(here))).dtype not in FLOATS:
            continue
        positions = sample_positions(info.size)
        if len(positions) != len(theirs):
            equal = False
            continue
        ours = model.sample(model.home(here), positions).astype(np.float32)
        equal, compared = equal and np.array_equal(ours, theirs), True
        if len(info.shape) > 1 and not model.family.has_token_rows(here, info.shape):
            sums = sums_of(ours, theirs)
            if name in delta.names and sums.count >= SAMPLE_SIZE and sums.exceeds(SIGMA_UNRELATED_MATRIX):
                odd = odd or f", tensor {name} alone {sums.apart / sums.total:.2f}"
            overall.add(sums)
    if UNRELATED not in options.waivers and (overall.exceeds(SIGMA_UNRELATED) or odd or not compared):
        sigma = f"{overall.apart / overall.total:.2f} from" if compared else "not comparable to"
        raise UnrelatedError(
            f"{delta.path} on {model.path}: the Instruct is {sigma} the delta's Base{odd} (0: equal, 0.7: unrelated or "
            f"transposed, limits {SIGMA_UNRELATED} and {SIGMA_UNRELATED_MATRIX}); pass an Instruct of that Base, or "
            "--unrelated"
        )
    if ONTO_BASE not in options.waivers and equal and model.digest() == delta.base_digest:
        raise OntoBaseError(
            f"{delta.path} on {model.path}: the Instruct is the delta's own Base, {delta.base_digest}; "
            "pass the Instruct of that Base, or --onto-base"
        )
