"""PiSSA and OLoRA change the Base when training begins: W becomes W - P. The delta must leave P out.

PEFT repeats the split from the Base alone each time it loads the adapter, and so does this module: P is the part of W
in its first `rank` singular vectors (PiSSA, Meng et al. 2024, eq. 3) or `scaling` times the first `rank` terms of its
QR decomposition (OLoRA, Büyükakyüz 2024; PEFT LoraLayer.olora_init). Then `delta = scaling * B A - P`, of twice the
rank. This equals PEFT's result on a float32 Base; on a bfloat16 Base, PEFT also rounds W - P.
"""

import math

import numpy as np

from shadowft_core.delta.factors import Factors
from shadowft_core.delta.lowrank import project, spectrum
from shadowft_core.delta.settings import CONVERT, Settings
from shadowft_core.errors import AdapterError, UnrelatedError
from shadowft_core.weights import Checkpoint
from shadowft_core.weights.similarity import LEARNT_UNRELATED as FAR

EPSILON = float(np.finfo(np.float32).eps)
DOUBT = 0.01  # of the delta's norm: the largest uncertainty of P, from the training's float32 decomposition


def without_initial(before: Checkpoint, name: str, trained: Factors, settings: Settings, swapped: bool) -> Factors:
    """Factors of `scaling * left right - P`. `swapped` means that the tensor is stored (inputs, outputs).

    Raises AdapterError if the Base does not determine P well enough, UnrelatedError for another model.
    """
    stored = before.read(name).astype(np.float32)
    matrix = stored.T if swapped else stored
    left, right, doubt, why = (_pissa if settings.initial == "pissa" else _olora)(matrix, trained, settings)
    if swapped:
        left, right = right.T, left.T
    left = (-left / trained.scaling).astype(np.float32)
    right = right.astype(np.float32)
    size = trained.product_norm() + abs(trained.scaling) * float(np.linalg.norm(left.astype(np.float64) @ right))
    both = np.concatenate([trained.left(), left], axis=1), np.concatenate([trained.right(), right])
    found = Factors(2 * trained.rank, trained.scaling, lambda: both[0], lambda: both[1])
    learnt = found.product_norm()
    if learnt > FAR * size:
        raise UnrelatedError(
            f"tensor {name}: the factors are {learnt / size:.2f} from the initial ones of {before.path} (0: equal, "
            f"0.7: unrelated, limit {FAR}); pass the model the adapter was trained on"
        )
    if doubt > DOUBT * learnt:
        raise AdapterError(
            f"{settings.path}: init_lora_weights={settings.initialisation!r}: {before.path} determines the start of "
            f"{name} only to within {doubt:.2g}, and the delta is {learnt:.2g} ({why}); {CONVERT}"
        )
    return found


def _pissa(matrix: np.ndarray, trained: Factors, settings: Settings) -> tuple[np.ndarray, np.ndarray, float, str]:
    rank = trained.rank
    squares, vectors = spectrum(matrix)
    values = np.sqrt(squares)
    last, first_out = float(values[rank - 1]), float(values[rank]) if rank < len(values) else 0.0
    # The error of a float32 decomposition at the cut (Wedin 1972), and of subspace iteration from a random start
    # (Halko, Martinsson and Tropp 2011, theorem 10.6): no file holds the state of PEFT's random generator.
    doubt = EPSILON * float(values[0]) * last / max(last - first_out, EPSILON * float(values[0]))
    if settings.iterations is not None and last > 0:
        doubt = max(doubt, last * max(matrix.shape) * (first_out / last) ** (2 * settings.iterations + 1))
    why = f"singular values {rank} and {rank + 1} are {last:.6g} and {first_out:.6g}"
    return *project(matrix, vectors[:, :rank]), doubt, why


def _olora(matrix: np.ndarray, trained: Factors, settings: Settings) -> tuple[np.ndarray, np.ndarray, float, str]:
    basis, triangle = np.linalg.qr(matrix[:, : trained.rank].astype(np.float64))
    right = basis.T @ matrix.astype(np.float64)
    values = np.linalg.svd(triangle, compute_uv=False)
    condition = float(values[0] / values[-1]) if values[-1] > 0 else math.inf
    doubt = EPSILON * condition * float(np.linalg.norm(right)) * trained.scaling
    return basis * trained.scaling, right, doubt, f"condition of its first {trained.rank} columns {condition:.2g}"
