"""The outputs of one run, checked to belong together, and the git state of its code."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError, RegistryError, without_passwords
from shadowft_core.files import Record, file_digest, read_regular
from shadowft_core.files.record import checked
from shadowft_core.grafting import deltas_of
from shadowft_core.limits import JSON_BYTES
from shadowft_core.params import Params, refuse_password
from shadowft_core.registry import forms
from shadowft_core.registry.registration import Registration, key_of, tags_of
from shadowft_core.selection import read_candidate
from shadowft_core.verdict.looks import read_run
from shadowft_core.verdict.scorefiles import Head
from shadowft_core.verdict.verdictfile import read_verdict
from shadowft_core.weights import pairfile

CONTEXTS = {"train": "training", "valid": "validation", "dev": "dev", "test": "testing", "replay": "training"}


@dataclass(frozen=True)
class Git:
    """The code of a run: its commit (40 hex digits), and whether tracked files differed from it."""

    commit: str
    dirty: bool


def git_state(folder: Path = Path()) -> Git | None:
    """Commit and dirty flag of a checkout; None outside one. Ignores dvc.lock, which a run writes.

    Raises RegistryError if git refuses the repository, as it does one of another user.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command, plain = ["git", "-C", str(folder), *arguments], os.environ | {"LC_ALL": "C"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=plain)

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    except FileNotFoundError:
        return None
    if changed.returncode and "not a git repository" not in changed.stderr:
        said = " ".join(changed.stderr.split())
        raise RegistryError(f"{folder.absolute()}: git cannot tell the commit of the code: {said:.500}")
    head = git("rev-parse", "--verify", "--quiet", "HEAD")
    return None if changed.returncode or head.returncode else Git(head.stdout.strip(), bool(changed.stdout.strip()))


def commit_date(commit: str, folder: Path = Path()) -> str | None:
    """When a commit was made, ISO 8601 with its own zone; None if the checkout does not have it."""
    command = ["git", "-C", str(folder), "show", "-s", "--format=%cI", commit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    return done.stdout.strip() or None


class Evidence:
    """The outputs of one run about its candidate, which is of any route. Raises RegistryError when one is missing, when
    they belong to different runs, or when no arm is the candidate."""

    def __init__(self, params: Params, work: Path, lock: Path, params_file: Path) -> None:
        route, reason = candidate_of(work)
        if route is None:
            raise RegistryError(f"{work}: there is no candidate, so there is nothing to register: {reason}")
        self.verdict = read_verdict(require_file(work / "verdict.json"), RegistryError)
        self.route = route
        grafted = work / "grafted" / route
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
            refuse_password(name, value or "")  # the recipe has a copy
        self.graft = _read_output(grafted / "recipe.json", forms.Graft)
        self.deltas = deltas_of(self.graft, grafted / "recipe.json")
        self.pair = _read_output(work / "pair" / "pair.json", pairfile.Pair)
        certificate = require_file(self.delta_folder / "delta.json")
        self.delta = file_digest(certificate)
        facts = _read_output(certificate, forms.Delta)
        self.train = facts.get("train") or {}
        for path in self.files:
            require_file(path)
        try:
            self.decision = str(self.verdict["decision"])
            self.tuned = self._side_with(str(facts["base"]["digest"]), certificate)
            for what, expected, found in [
                ("the Instruct", self.graft["instruct"]["digest"], self.pair["instruct"]["digest"]),
                ("the delta", [digest for digest, _ in self.deltas], [self.delta]),
                ("the judged model", self.graft["digest"], self.verdict["recipe_digest"]),
            ]:
                if expected != found:
                    raise RegistryError(
                        f"{work}: {what} is {found}, recipe.json has {expected}; these are outputs of different runs, "
                        "run `dvc repro` and register again"
                    )
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{work}: recipe, pair or verdict lacks {error}; run `dvc repro` again") from None

    @property
    def champion(self) -> int | None:
        """The number of the champion if the candidate is the same model, by run.json; None without that file.

        Raises RegistryError if it is damaged or of another candidate.
        """
        path = self.work / "run.json"
        if not path.is_file():  # a run of an older version, or of stages of a person's own
            return None
        try:
            told = read_run(path)
        except EvaluationError as error:
            raise RegistryError(f"{error}; then register again") from None
        if told.candidate != self.graft["digest"]:
            raise RegistryError(
                f"{path}: the candidate is {told.candidate}, recipe.json has {self.graft['digest']}; these are outputs "
                "of different runs, run `dvc repro` and register again"
            )
        return told.champion.version if told.champion and told.champion.digest == told.candidate else None

    @property
    def delta_folder(self) -> Path:
        return self.work / "delta" / self.route

    def _side_with(self, digest: str, certificate: Path) -> dict[str, Any]:
        """The model of the pair that the delta is against: the Instruct itself, if the route tunes that."""
        for side in ("base", "instruct"):
            if self.pair[side]["digest"] == digest:
                return dict(self.pair[side])
        raise RegistryError(
            f"{certificate}: the delta is against {digest}, pair.json has the Base {self.pair['base']['digest']} and "
            f"the Instruct {self.pair['instruct']['digest']}; these are outputs of different runs, run `dvc repro` and "
            "register again"
        )

    def registration(self, git: Git | None) -> Registration:
        """The data to send to MLflow. `git` is the state before the run, which rewrites dvc.lock."""
        recipe = self._recipe()
        return Registration(
            name=self.params.registry.name,
            key=key_of(recipe),
            decision=self.decision,
            recipe=recipe,
            tags=tags_of(recipe) | _git_tags(git),
            params=flat(self.params.model_dump(mode="json")),
            metrics=self._metrics(),
            datasets=self._datasets(),
            files={path.name: path.read_bytes() for path in self.files}
            | {self.params_file.name: without_passwords(self.params_file.read_text(encoding="utf-8")).encode()},
        )

    def _recipe(self) -> dict[str, Any]:
        """The registered recipe: the graft's recipe with its ingredients, verdict and lineage."""
        store = self.params.store  # as configured: the reader resolves a relative folder on its own machine
        judged = {name: value for name, value in self.graft.items() if name != "needs_verdict"}  # the verdict is below
        if self.verdict.get("format") != 1:  # runs with an older verdict keep their key
            said, scaled = self.verdict.get("candidate"), f"{self.route}_scaled"
            judged["arm"] = said if said == self.route else scaled  # `promote` compares it with the verdict's
        return judged | {
            "instruct": self.pair["instruct"],
            "base": self.tuned,
            # Always these three fields, so that runs registered earlier keep their key; the others only if set. None
            # is a secret.
            "store": {"uri": store.uri, "endpoint": store.endpoint, "region": store.region}
            | store.model_dump(exclude_defaults=True),
            "verdict": {"digest": file_digest(self.work / "verdict.json"), "decision": self.decision},
            "lineage": {"lock": file_digest(self.lock), "data": self._data_digest(), "train": self._train_digest()},
        }

    def _metrics(self) -> dict[str, float]:
        """Mean score of every arm and task, under `ARM/TASK`, without those of routes that were removed; what was known
        before training, under `preflight/`, and the candidate's gain over the Instruct as `outcome/gain`."""
        found, known = self._preflight(), {"instruct", *self.params.routes}
        for path in sorted((self.work / "scores").glob("*/*/scores.json")):
            head = _read_output(path, Head)
            if head["arm"].removesuffix("_scaled") in known:
                found |= {f"{head['arm']}/{task}": float(entry["mean"]) for task, entry in head["tasks"].items()}
        return found

    def _preflight(self) -> dict[str, float]:
        """preflight.json as numbers, with the outcome beside it; nothing without the file."""
        path = self.work / "preflight.json"
        if not path.is_file():  # a run of an older version
            return {}
        told = _read_output(path, forms.Preflight)
        values = {f"loss.{side}": loss for side, loss in told.get("loss", {}).items()}
        values |= {"cosine": told.get("cosine"), "sigma": told["sigma"]["overall"]}
        for name, kinds in (("cosine", told.get("modules")), ("sigma", told["sigma"]["modules"])):
            values |= {f"{name}.{kind}": value for kind, value in (kinds or {}).items()}
        found = {f"preflight/{name}": float(value) for name, value in values.items() if value is not None}
        for claim in self.verdict.get("claims", []):
            if (claim["role"], claim["against"], claim["arm"]) == ("domain", "instruct", self.verdict["candidate"]):
                return found | {"outcome/gain": float(claim["difference"])}
        return found

    def _datasets(self) -> list[dict[str, str]]:
        """The splits that have rows. Their digest is that of the data, as in train.json and the delta."""
        report = self.work / "data" / "data-report.json"
        if not report.is_file():  # a workspace without a prepare stage
            return []
        found = _read_output(report, forms.DataReport)
        counts = {split: (rows, self.params.prepare.data) for split, rows in found["splits"].items()}
        if replay := found.get("replay"):
            counts["replay"] = replay["rows_used"], replay["data"]
        return [
            {
                "name": f"data/{name}",
                "context": CONTEXTS[name],
                "digest": str(found["digest"]),
                "rows": str(rows),
                "source": source,
            }
            for name, (rows, source) in counts.items()
            if rows
        ]

    def _data_digest(self) -> str:
        return str(self.train.get("data_digest", "unknown"))

    def _train_digest(self) -> str:
        return str(self.train.get("digest", "unknown"))


def candidate_of(work: Path) -> tuple[str | None, str]:
    """The route of a run's candidate, or None and the reason if there is none.

    candidate.json names it. Without that file, it is the route whose graft is the model that verdict.json judges.
    Raises RegistryError if the two files disagree, one is damaged, or no graft is that model.
    """
    verdict = read_verdict(require_file(work / "verdict.json"), RegistryError)
    said = verdict.get("candidate")
    if (file := work / "candidate.json").is_file():
        try:
            candidate = read_candidate(file)
        except EvaluationError as error:
            raise RegistryError(f"{error}; then run `dvc repro` and register again") from None
        if candidate.arm != said:
            raise RegistryError(
                f"{work}: the candidate is {candidate.arm} in candidate.json, {said} in verdict.json; these are "
                "outputs of different runs, run `dvc repro` and register again"
            )
        return candidate.route, candidate.reason
    if said is None and "candidate" in verdict:
        return None, "; ".join(map(str, verdict.get("reasons", [])))
    judged, named = verdict.get("recipe_digest"), str(said).removesuffix("_scaled")
    grafts = {
        path.parent.name: _read_output(path, forms.Graft)["digest"] for path in work.glob("grafted/*/recipe.json")
    }
    found = sorted(route for route, digest in grafts.items() if digest == judged)
    if named in found or (not found and named in grafts):  # `Evidence` says how that graft differs
        return named, ""
    if not found:
        raise RegistryError(
            f"{work / 'grafted'}: no recipe.json makes the judged model {judged}; run `dvc repro` and register again"
        )
    return found[0], ""


def _git_tags(git: Git | None) -> dict[str, str]:
    return {
        "shadowft.git.commit": git.commit if git else "unknown",
        "shadowft.git.dirty": str(git.dirty).lower() if git else "unknown",
    }


def require_file(path: Path) -> Path:
    if not path.is_file():
        raise RegistryError(f"{path}: no such file; run `dvc repro` first")
    return path


def _read_output(path: Path, form: type[Record]) -> dict[str, Any]:
    raw = read_regular(require_file(path), JSON_BYTES, RegistryError)
    found: dict[str, Any] = checked(raw, form, path, "run `dvc repro` again", error=RegistryError)
    return found


def flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    """The values of a tree as text without passwords, by dotted name."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{above}{name}.")
        else:
            found[above + name] = without_passwords(str(value))[:6000]
    return found
