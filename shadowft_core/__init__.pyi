"""The names of `__init__.py` for type checkers; tests/test_package.py holds the two together."""

from shadowft_core.delta import Delta as Delta
from shadowft_core.delta import extract as extract
from shadowft_core.delta import open_delta as open_delta
from shadowft_core.errors import ShadowError as ShadowError
from shadowft_core.export import export_adapter as export_adapter
from shadowft_core.grafting import Options as Options
from shadowft_core.grafting import graft as graft_model
from shadowft_core.pair import check_pair as check_pair
from shadowft_core.params import Params as Params
from shadowft_core.params import Store as Store
from shadowft_core.params import load_params as load_params
from shadowft_core.promotion import materialize as materialize
from shadowft_core.store import fetch_delta as fetch_delta
from shadowft_core.store import publish as publish
from shadowft_core.weights import Checkpoint as Checkpoint
from shadowft_core.weights import open_checkpoint as open_checkpoint

__all__ = [
    "Checkpoint",
    "Delta",
    "Options",
    "Params",
    "ShadowError",
    "Store",
    "__version__",
    "check_pair",
    "export_adapter",
    "extract",
    "fetch_delta",
    "graft_model",
    "load_params",
    "materialize",
    "open_checkpoint",
    "open_delta",
    "publish",
]

__version__: str
