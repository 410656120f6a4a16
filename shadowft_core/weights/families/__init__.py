"""Facts about each model family: its names, ties, kinds of module and layouts of experts.

The facts are those of the pinned transformers, in table.json (written by `python -m tests.families.generate`), so
that the rooms that read weights need neither torch nor transformers. For a family that is not in the table, the config
and the names that published models share decide (names.py).
"""

from shadowft_core.weights.families.experts import EXPERT_NAMES
from shadowft_core.weights.families.family import LAYERS, LINEAR, Family
from shadowft_core.weights.families.names import is_language, layer_of, module_of
from shadowft_core.weights.families.ties import note_unknown, require_equal, ties_of

__all__ = [
    "EXPERT_NAMES",
    "LAYERS",
    "LINEAR",
    "Family",
    "is_language",
    "layer_of",
    "module_of",
    "note_unknown",
    "require_equal",
    "ties_of",
]
