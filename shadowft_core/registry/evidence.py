"""The outputs of one run, found to belong together, and the code they were made with: what a registration tells."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import RegistryError, without_passwords
from shadowft_core.files import file_digest
from shadowft_core.graft import deltas_of
from shadowft_core.params import Params, refuse_password
from shadowft_core.registry.registration import Registration, key_of, tags_of

CONTEXTS = {"train": "training", "valid": "validation", "dev": "dev", "test": "testing"}


@dataclass(frozen=True)
class Git:
    """The code a run was made with: commit (40 hex digits) and whether tracked files differed from it."""

    commit: str
    dirty: bool


def git_state(folder: Path = Path()) -> Git | None:
    """Commit and dirty flag of a checkout, dvc.lock aside because a run writes it; None outside of a checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
        return Git(git("rev-parse", "HEAD"), bool(changed))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None


class Evidence:
    """The outputs of one run, read once and found to belong together."""

    def __init__(self, params: Params, work: Path, lock: Path, params_file: Path) -> None:
        grafted = work / "grafted" / "shadow"
        self.params = params
        self.lock = lock
        self.work = work
        self.params_file = params_file
        self.files = [
            work / "report.html",
            work / "verdict.json",
            lock,
            params_file,
            grafted / "recipe.json",
            grafted / "receipt.json",
        ]
        for name, value in (("store.uri", params.store.uri), ("store.endpoint", params.store.endpoint)):
            refuse_password(name, value or "")  # the recipe holds them
        self.graft = json_object(grafted / "recipe.json")
        self.deltas = deltas_of(self.graft, grafted / "recipe.json")
        self.pair = json_object(work / "pair" / "pair.json")
        self.verdict = json_object(work / "verdict.json")
        self.delta = file_digest(there(work / "delta" / "shadow" / "delta.json"))
        self.train = json_object(work / "delta" / "shadow" / "delta.json").get("train") or {}
        for path in self.files:
            there(path)
        try:
            self.decision = str(self.verdict["decision"])
            for what, expected, found in [
                ("the Instruct", self.graft["instruct"]["digest"], self.pair["instruct"]["digest"]),
                ("the delta", [digest for digest, _ in self.deltas], [self.delta]),
                ("the judged model", self.graft["digest"], self.verdict["recipe_digest"]),
            ]:
                if expected != found:
                    raise RegistryError(
                        f"{work}: {what} is {found}, recipe.json says {expected}; outputs of different runs, run "
                        "`dvc repro` and register again"
                    )
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{work}: recipe, pair or verdict lacks {error}; run `dvc repro` again") from None

    def registration(self, git: Git | None) -> Registration:
        """All that MLflow is told. `git` is the code before the run, which rewrites dvc.lock."""
        recipe = self._recipe()
        return Registration(
            name=self.params.registry.name,
            key=key_of(recipe),
            decision=self.decision,
            recipe=recipe,
            tags=tags_of(recipe) | _git_tags(git),
            params=_flat(self.params.model_dump(mode="json")),
            metrics=self._metrics(),
            datasets=self._datasets(),
            files={path.name: path.read_bytes() for path in self.files}
            | {self.params_file.name: without_passwords(self.params_file.read_text(encoding="utf-8")).encode()},
        )

    def _recipe(self) -> dict[str, Any]:
        """What is registered: the recipe of the graft, and where its ingredients are."""
        store = self.params.store  # as configured: a relative folder means one on the reader's machine
        judged = {name: value for name, value in self.graft.items() if name != "needs_verdict"}  # it has one here
        return judged | {
            "instruct": self.pair["instruct"],
            "base": self.pair["base"],
            # Three fields always: a run registered before keeps its key. Of the rest, none a secret, what was set.
            "store": {"uri": store.uri, "endpoint": store.endpoint, "region": store.region}
            | store.model_dump(exclude_defaults=True),
            "verdict": {"digest": file_digest(self.work / "verdict.json"), "decision": self.decision},
            "lineage": {"lock": file_digest(self.lock), "data": self._data_digest(), "train": self._train_digest()},
        }

    def _metrics(self) -> dict[str, float]:
        """`ARM/TASK`: mean score of every arm and task."""
        found = {}
        for path in sorted((self.work / "scores").glob("*/*/scores.json")):
            scores = json_object(path)
            for task, entry in scores["tasks"].items():
                found[f"{scores['arm']}/{task}"] = float(entry["mean"])
        return found

    def _datasets(self) -> list[dict[str, str]]:
        """The splits that hold rows. One digest names them all; it is the one train.json and the delta carry."""
        report = self.work / "data" / "data-report.json"
        if not report.is_file():  # a workspace without a prepare stage
            return []
        found = json_object(report)
        return [
            {
                "name": f"data/{split}",
                "context": CONTEXTS[split],
                "digest": str(found["digest"]),
                "rows": str(rows),
                "source": self.params.prepare.data,
            }
            for split, rows in found["splits"].items()
            if rows
        ]

    def _data_digest(self) -> str:
        return str(self.train.get("data_digest", "unknown"))

    def _train_digest(self) -> str:
        return str(self.train.get("digest", "unknown"))


def _git_tags(git: Git | None) -> dict[str, str]:
    return {
        "shadowft.git.commit": git.commit if git else "unknown",
        "shadowft.git.dirty": str(git.dirty).lower() if git else "unknown",
    }


def there(path: Path) -> Path:
    if not path.is_file():
        raise RegistryError(f"{path}: no such file; run `dvc repro` first")
    return path


def json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(there(path).read_bytes())
    except ValueError as error:
        raise RegistryError(f"{path}: not JSON: {error}; run `dvc repro` again") from None
    if not isinstance(found, dict):
        raise RegistryError(f"{path}: a JSON object is wanted; run `dvc repro` again")
    return found


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = without_passwords(str(value))[:6000]
    return found
