"""What the candidate lost and won against the Instruct and, if it was scored, the champion."""

from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.forgetting import ledger

CHAMPION = Path("champion", "champion")  # below the scores


def forgotten(scores: Path, instruct: Path, candidate: Path) -> list[dict[str, Any]]:
    """A ledger for each reference; `refused` is why the champion could not be compared, such as other items."""
    found: list[dict[str, Any]] = [{"against": "the Instruct", "refused": None, **ledger(instruct, candidate)}]
    champion = scores / CHAMPION
    if (champion / "scores.json").is_file():
        try:
            found.append({"against": "the champion", "refused": None, **ledger(champion, candidate)})
        except EvaluationError as error:
            found.append({"against": "the champion", "refused": str(error)})
    return found
