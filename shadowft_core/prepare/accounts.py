"""What became of every row: used, or dropped for a reason."""

from collections import Counter
from pathlib import Path
from typing import IO, Any

from shadowft_core.errors import DataError
from shadowft_core.files import canonical_json
from shadowft_core.prepare.shapes import Talk

SHOWN = 1000  # dropped rows in the report; dropped.jsonl has all


class Accounts:
    """Counts of the rows of one data set, and their lines in dropped.jsonl."""

    def __init__(self, dropped: IO[bytes], **marks: str) -> None:
        """`marks` are further fields of each line in `dropped`."""
        self._file, self._marks = dropped, marks
        self._shown: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        self.ignored: Counter[str] = Counter()
        self.unread: list[str] = []
        self._files: dict[str, dict[str, Any]] = {}
        self.read = self.bad = 0

    def use(self, file: str, talk: Talk) -> None:
        """Count a usable row."""
        self.read += 1
        about = self._about(file)
        about["usable"] += 1
        about["shapes"][talk.shape] += 1
        self.ignored.update(talk.ignored)

    def refuse(self, file: str, line: int, reason: str) -> None:
        """Count a row that cannot be used."""
        self.read += 1
        self.bad += 1
        self._about(file)["bad"] += 1
        self.drop(file, line, reason)

    def drop(self, file: str, line: int, reason: str) -> None:
        """Record a row that is not used."""
        self.reasons[reason] += 1
        one = {"file": file, "line": line, "reason": reason, **self._marks}
        self._file.write(canonical_json(one) + b"\n")
        if len(self._shown) < SHOWN:
            self._shown.append(one)

    def require_usable(self, data: Path, max_bad: float) -> None:
        """Raises DataError when nothing was read, nothing is usable, or more than `max_bad` of the rows is not."""
        if self.read == 0:
            raise DataError(f"{data}: holds no rows; put at least one conversation there")
        first = "; ".join(f"{one['file']}:{one['line']} {one['reason']}" for one in self._shown[:3])
        first += "; ..." if self.bad > 3 else ""
        if self.bad == self.read:
            raise DataError(f"{data}: none of {self.read} rows is usable: {first}")
        if self.bad > max_bad * self.read:
            raise DataError(
                f"{data}: {self.bad} of {self.read} rows ({self.bad / self.read:.1%}) are not usable, prepare.max_bad "
                f"allows {max_bad:.1%}: {first}; repair them or raise prepare.max_bad"
            )

    def report(self) -> dict[str, Any]:
        """The counts of the report."""
        dropped = self.reasons.total()
        return {
            "files": [{"file": name, **about, "shapes": dict(about["shapes"])} for name, about in self._files.items()],
            "files_not_read": self.unread,
            "rows_read": self.read,
            "rows_used": self.read - dropped,
            "rows_dropped": dict(self.reasons.most_common()),
            "bad": self.bad,
            "dropped": self._shown,
            "fields_ignored": dict(self.ignored.most_common()),
        }

    def told(self) -> str:
        """Rows read, used and left out, in words."""
        reasons = "".join(f", {count} {reason}" for reason, count in self.reasons.most_common())
        return f"{self.read} rows, {self.read - self.reasons.total()} used{reasons}"

    def _about(self, file: str) -> dict[str, Any]:
        return self._files.setdefault(file, {"usable": 0, "bad": 0, "shapes": Counter()})
