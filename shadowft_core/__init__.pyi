"""The names of `__init__.py` for type checkers; tests/test_package.py holds the two together."""

from shadowft_core.api import check_pair as check_pair
from shadowft_core.api import extract as extract
from shadowft_core.api import graft as graft
from shadowft_core.api import judge as judge
from shadowft_core.api import materialize as materialize
from shadowft_core.api import open_delta as open_delta
from shadowft_core.api import publish as publish
from shadowft_core.api import read_receipt as read_receipt
from shadowft_core.delta import Delta as Delta
from shadowft_core.errors import ShadowError as ShadowError
from shadowft_core.grafting import Merge as Merge
from shadowft_core.grafting import Options as Options
from shadowft_core.params import Registry as Registry
from shadowft_core.params import Store as Store
from shadowft_core.params import Verdict as Verdict

__all__ = [
    "Delta",
    "Merge",
    "Options",
    "Registry",
    "ShadowError",
    "Store",
    "Verdict",
    "__version__",
    "check_pair",
    "extract",
    "graft",
    "judge",
    "materialize",
    "open_delta",
    "publish",
    "read_receipt",
]

__version__: str
