"""How long is left: from the durations of earlier runs, else from dvc.yaml's `meta.seconds` at this machine's pace."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from shadowft_core.errors import CheckpointError
from shadowft_core.files import read_json_object, write_json_atomically


class Clock:
    """Expected seconds of each step, kept in a JSON file `{step: seconds}` between runs."""

    def __init__(self, promised: Mapping[str, float], file: Path) -> None:
        self._promised = promised
        self._file = file
        self._measured: dict[str, float] = {}
        try:
            kept = read_json_object(file)
        except CheckpointError:  # absent or damaged: a guess is lost, nothing else
            kept = {}
        self._measured = {name: float(s) for name, s in kept.items() if isinstance(s, int | float) and s >= 0}

    def record(self, step: str, seconds: float) -> None:
        """Remember what a step took."""
        self._measured[step] = round(seconds, 2)
        write_json_atomically(self._file, self._measured)

    def expect(self, step: str) -> float:
        """Seconds this step will take."""
        return self._measured.get(step, self._promised[step] * self._pace())

    def left(self, waiting: Iterable[str], running: str | None = None, elapsed: float = 0.0) -> float:
        """Seconds until the waiting steps and the running one, `elapsed` seconds old, are over."""
        rest = max(self.expect(running) - elapsed, 0.0) if running else 0.0
        return rest + sum(self.expect(step) for step in waiting)

    def _pace(self) -> float:
        """Measured seconds for each promised second, over all steps of which both are known; 1 when none is."""
        both = [step for step in self._promised if step in self._measured]
        promised = sum(self._promised[step] for step in both)
        return sum(self._measured[step] for step in both) / promised if promised else 1.0
