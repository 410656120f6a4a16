"""What all sections of params.yaml have in common, and the types that several of them use."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shadowft_core.errors import plain
from shadowft_core.limits import ENTRIES, PROCESSES, PROMPT_CHARACTERS, SEED, VALUE_CHARACTERS, VALUE_COUNT


def require_text(value: str, keep: str = "") -> str:
    """The value itself. Raises ValueError for a character that a name cannot have: a path, a server or a terminal would
    take it for something else, or fail. `keep` has those that are allowed."""
    odd = next((letter for letter in value if letter not in keep and plain(letter) != letter), None)
    if odd is not None and "\ud800" <= odd <= "\udfff":
        raise ValueError("not UTF-8; rename it")
    if odd is not None:
        raise ValueError(f"the character U+{ord(odd):04X} may not be in it; remove it")
    return value


def _prompt(value: str) -> str:
    return require_text(value, "\t\n\r\u061c\u200e\u200f\u2028\u2029")


Text = Annotated[str, Field(max_length=VALUE_CHARACTERS), AfterValidator(require_text)]
"""a name, path, URL or pattern: one line"""
Prompt = Annotated[str, Field(max_length=PROMPT_CHARACTERS), AfterValidator(_prompt)]
"""a text of several lines"""
Texts = Annotated[tuple[Text, ...], Field(max_length=ENTRIES)]
Scale = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=VALUE_COUNT)]
Count = Annotated[int, Field(ge=1, le=VALUE_COUNT)]
Processes = Annotated[int, Field(ge=1, le=PROCESSES)]
Seed = Annotated[int, Field(ge=0, le=SEED)]


class Section(BaseModel):
    """A frozen model without unknown fields, NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        defer_build=True,  # built on first use: halves the import time
    )
