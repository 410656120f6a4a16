"""Estimates the time left: from earlier runs, else from `meta.seconds` in dvc.yaml, scaled to this machine."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object, write_json_atomically


class Clock:
    """Expected seconds of each step. A JSON file `{step: seconds}` stores the measured ones between runs."""

    def __init__(self, declared: Mapping[str, float], file: Path) -> None:
        """`declared` has the expected seconds of steps that were never measured; for a step it lacks, 1 second."""
        self._declared = declared
        self._file = file
        try:
            kept = read_json_object(file)
        except CheckpointError:  # absent or damaged: only estimates are lost
            kept = {}
        self._measured = {name: float(s) for name, s in kept.items() if isinstance(s, int | float) and s >= 0}

    def record(self, step: str, seconds: float) -> None:
        """Save how long a step took."""
        self._measured[step] = round(seconds, 2)
        write_json_atomically(self._file, self._measured)

    def expected(self, step: str) -> float:
        """The expected seconds of this step: measured before, else declared and scaled to this machine."""
        return self._measured.get(step, self._declared.get(step, 1.0) * self._pace())

    def remaining(self, waiting: Iterable[str], running: str | None = None, elapsed: float = 0.0) -> float:
        """Seconds for the waiting steps and the rest of the running one, which started `elapsed` seconds ago."""
        current = max(self.expected(running) - elapsed, 0.0) if running else 0.0
        return current + sum(self.expected(step) for step in waiting)

    def _pace(self) -> float:
        """Measured seconds per declared second, over the steps that have both; 1 when there are none."""
        both = [step for step in self._declared if step in self._measured]
        declared = sum(self._declared[step] for step in both)
        return sum(self._measured[step] for step in both) / declared if declared else 1.0
