"""What all sections of params.yaml have in common, and the types that several of them use."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Scale = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen model without unknown fields, NaN or infinity."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        defer_build=True,  # built on first use: halves the import time
    )
