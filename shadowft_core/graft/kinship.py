"""Is the Instruct a relative of the delta's Base, and another model? Judged by a sample, before anything is written."""

import numpy as np

from shadowft_core.delta import sample_positions
from shadowft_core.errors import OntoBaseError, UnrelatedError
from shadowft_core.graft.match import Match
from shadowft_core.graft.options import ONTO_BASE, UNRELATED, Options
from shadowft_core.weights import FLOATS

FAR = 0.5  # published pairs lie between 0.003 and 0.1, independent weights at 0.7
FAR_MATRIX = 0.55  # of one matrix, whose sample of 64 estimates its sigma to 0.035; published ones reach 0.35


def require_kinship(match: Match, options: Options) -> None:
    """Hold the sample that the delta keeps of its Base (`Delta.base_sample`) against the Instruct.

    The distance is sigma = sum|B - I| / (sum|B| + sum|I|) over the sampled values of all matrices (Shadow-FT, section
    3); vectors are left out, for norms are near 1 in every model. Raises UnrelatedError above 0.5, when one matrix
    that the delta would change lies above 0.55, or when none can be compared; OntoBaseError when the Instruct is the
    delta's own Base. Both can be waived by name.
    """
    model, delta = match.model, match.delta
    apart = total = 0.0
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
        if len(info.shape) > 1 and not model.family.has_token_rows(here, info.shape):  # rows may be in another order
            with np.errstate(invalid="ignore"):  # what is not finite is refused by name where it is read
                gap = float(np.nansum(np.abs(ours - theirs), dtype=np.float64))
                size = float(np.nansum(np.abs(ours), dtype=np.float64) + np.nansum(np.abs(theirs), dtype=np.float64))
            if name in delta.names and len(positions) >= 64 and gap > FAR_MATRIX * size:
                odd = odd or f", tensor {name} alone {gap / size:.2f}"
            apart, total = apart + gap, total + size
    if UNRELATED not in options.waivers and (apart > FAR * total or odd or not compared):
        sigma = f"{apart / total:.2f} from" if compared else "nowhere comparable to"
        raise UnrelatedError(
            f"{delta.path} on {model.path}: the Instruct is {sigma} the delta's Base{odd} (0: equal, 0.7: unrelated or "
            f"transposed, limits {FAR} and {FAR_MATRIX}); pass an Instruct of that Base, or --unrelated"
        )
    if ONTO_BASE not in options.waivers and equal and model.digest() == delta.base_digest:
        raise OntoBaseError(
            f"{delta.path} on {model.path}: the Instruct is the model the delta was taken from, {delta.base_digest}; "
            "pass the Instruct, or --onto-base"
        )
