"""Rows keep their source, `file:row`, through packing and shuffling, so that an error can name those of a step."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

SOURCES = "sources"
SHOWN = 10


def sources_column(sources: Sequence[Sequence[str]]) -> dict[str, pa.Array]:
    """A column of a data set with the sources of each sequence; none if they are not known."""
    return {SOURCES: pa.array(sources, pa.list_(pa.string()))} if sources else {}


class SourcedCollator:
    """Adds the sources of a batch to it, as a list."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        found = [source for row in rows for source in row.get(SOURCES, ())]
        batch: dict[str, Any] = self._collator([{k: v for k, v in row.items() if k != SOURCES} for row in rows])
        return {**batch, SOURCES: found} if found else batch


class NamesRows:
    """Mixed into a trainer of TRL, before it: takes the sources out of a batch and remembers those of the last step."""

    _step_seen = -1

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        """TRL's, without the sources."""
        if self._step_seen != self.state.global_step:
            self._step_seen, self._seen = self.state.global_step, []
        sources = inputs.pop(SOURCES, [])
        loss = super().training_step(model, inputs, *given, **named)  # type: ignore[misc]
        self._seen.append((loss, sources))
        return loss

    def prediction_step(self: Any, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        """TRL's, without the sources."""
        inputs.pop(SOURCES, None)
        return super().prediction_step(model, inputs, *given, **named)  # type: ignore[misc]

    def rows_of_step(self: Any) -> str:
        """The rows of the micro-batches of the last step whose loss is not finite, or of all, as text."""
        bad = [sources for loss, sources in self._seen if not bool(loss.isfinite())]
        found = [source for sources in bad or [sources for _, sources in self._seen] for source in sources]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return ", ".join(found[:SHOWN]) + more if found else "of another process"
