"""What a check found."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]
OK: State = "ok"
WARN: State = "warn"
"""it works, but not as well as it could, or not everything does"""
FAIL: State = "fail"
"""a verb will fail"""


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` is empty if the state is ok."""

    check: str
    state: State
    said: str
    remedy: str = ""
