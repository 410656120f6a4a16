"""Counts for each row whether it is used or why it is dropped, what was normalised in it, and what looks wrong."""

from array import array
from collections import Counter
from typing import IO, Any

import numpy as np

from shadowft_core.errors import DataError
from shadowft_core.files import canonical_json
from shadowft_core.prepare.shapes import Conversation
from shadowft_core.prepare.suspect import KINDS, suspects
from shadowft_core.prepare.turns import BadRow, printable

SHOWN = 1000  # dropped rows in the report; dropped.jsonl has all
EXAMPLES = 5  # suspect rows of each kind in the report
_CANDIDATES = 200  # suspect rows of each kind kept while reading; duplicates among them are dropped later


class Accounts:
    """Counts of the rows of one data set, and their lines in dropped.jsonl."""

    def __init__(self, dropped: IO[bytes], **marks: str) -> None:
        """`dropped` is the open dropped.jsonl; each line also gets the fields `marks`."""
        self._file, self._marks = dropped, marks
        self._shown: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        self._bad: dict[str, str] = {}
        """file:line of the first row with each problem"""
        self.unread: list[str] = []
        self._refused: Counter[str] = Counter()
        self._files: dict[str, dict[str, Any]] = {}
        self.read = self.bad = 0
        self._notes: dict[tuple[frozenset[str], ...], int] = {}
        """the number of each combination of normalised, ignored and suspect features, and kind; few occur"""
        self._rows = array("I")
        """for each usable row the number of its combination in `_notes`"""
        self._examples: dict[str, list[tuple[int, dict[str, str]]]] = {kind: [] for kind in KINDS}

    def open(self, file: str) -> None:
        """List a file in the report, even if it has no rows."""
        self._about(file)

    def use(self, file: str, line: int, conversation: Conversation) -> None:
        """Count a usable row."""
        self.read += 1
        about = self._about(file)
        about["usable"] += 1
        about["shapes"][conversation.shape] += 1
        suspect = suspects(conversation.messages)
        for kind, text in suspect.items():
            if len(self._examples[kind]) < _CANDIDATES:
                self._examples[kind].append((len(self._rows), {"source": f"{file}:{line}", "text": text}))
        pair = frozenset(["preferences"] if conversation.rejected else ())
        notes = frozenset(conversation.normalised), frozenset(conversation.ignored), frozenset(suspect), pair
        self._rows.append(self._notes.setdefault(notes, len(self._notes)))

    def refuse(self, file: str, line: int, problem: BadRow) -> None:
        """Count a row that cannot be used."""
        self.read += 1
        self.bad += 1
        self._about(file)["bad"] += 1
        if problem.feature:
            self._refused[problem.feature] += 1
        self._bad.setdefault(str(problem), f"{file}:{line}")
        self.drop(file, line, str(problem))

    def drop(self, file: str, line: int, reason: str) -> None:
        """Record a row that is not used."""
        self.reasons[reason] += 1
        row = {"file": file, "line": line, "reason": reason, **self._marks}
        self._file.write(canonical_json(row) + b"\n")
        if len(self._shown) < SHOWN:
            self._shown.append(row)

    def require_usable(self, data: str, max_bad: float) -> None:
        """Raises DataError if there are no rows, none is usable, or more than the share `max_bad` is not usable."""
        if self.read == 0:
            raise DataError(f"{data}: expected rows, found none; put at least one conversation there")
        if self.bad == self.read:
            raise DataError(
                f"{data}: none of {self.read} rows is usable: {self.problems()}; repair them or map fields with "
                "prepare.columns"
            )
        if self.bad > max_bad * self.read:
            raise DataError(
                f"{data}: {self.bad} of {self.read} rows ({self.bad / self.read:.1%}) are not usable, but "
                f"prepare.max_bad allows {max_bad:.1%}: {self.problems()}; repair them or raise prepare.max_bad"
            )

    def problems(self) -> str:
        """The three most common problems of bad rows, with the first row and the number of rows of each."""
        common = sorted(self._bad, key=lambda problem: -self.reasons[problem])
        told = [f"{self._bad[problem]} {problem} ({self.reasons[problem]} rows)" for problem in common[:3]]
        return "; ".join(told) + ("; ..." if len(common) > 3 else "")

    def report(self, used: np.ndarray) -> dict[str, Any]:
        """The counts of the report. `used`, bool (usable rows,), marks the rows that are in a split."""
        rows = np.bincount(np.frombuffer(self._rows, np.uint32)[used], minlength=len(self._notes))
        normalised, ignored, suspect, kinds = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
        for notes, number in self._notes.items():
            for counts, names in zip((normalised, ignored, suspect, kinds), notes, strict=True):
                counts.update(dict.fromkeys(map(printable, names), int(rows[number])))
        dropped = self.reasons.total()
        return {
            "files": [{"file": name, **about, "shapes": dict(about["shapes"])} for name, about in self._files.items()],
            "files_not_read": self.unread,
            "rows_read": self.read,
            "rows_used": self.read - dropped,
            "preferences": kinds["preferences"],
            "rows_dropped": dict(self.reasons.most_common()),
            "bad": self.bad,
            "dropped": self._shown,
            "normalised": _counted(normalised),
            "fields_ignored": _counted(ignored),
            "refused": _counted(self._refused),
            "suspect": {
                kind: {
                    "rows": suspect[kind],
                    "examples": [one for row, one in self._examples[kind] if used[row]][:EXAMPLES],
                }
                for kind in KINDS
                if suspect[kind]
            },
        }

    def summary(self) -> str:
        """Numbers of rows read, used and left out by reason, in one line."""
        reasons = "".join(f", {count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.read} rows, {self.read - self.reasons.total()} used{reasons}"

    def _about(self, file: str) -> dict[str, Any]:
        if file not in self._files:
            self._files[file] = {"usable": 0, "bad": 0, "shapes": Counter()}
        return self._files[file]


def _counted(names: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in sorted(names.items(), key=lambda one: (-one[1], one[0])) if count}
