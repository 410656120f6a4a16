"""The memory of the house, in MLflow: a version is a recipe of a few kB, and `champion` moves only on a positive verdict.

Weights never pass through the tracking server. Loading a version unpickles nothing. Registering and promoting are keyed by
content: repeating them changes nothing.
"""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shadowft_core.store as stores
from shadowft_core.checkpoint import bytes_digest, canonical_json, file_digest, new_folder, open_checkpoint
from shadowft_core.errors import GraftError, PromotionRefused, RegistryError, ShadowError
from shadowft_core.params import Params, Registry, Store

CANDIDATE, CHAMPION = "challenger", "champion"
LARGEST_RECIPE = 1 << 20  # bytes
_REFERENCE = re.compile(
    r"models:/([A-Za-z0-9][A-Za-z0-9._-]{0,99})(?:@([A-Za-z][A-Za-z0-9_-]{0,99})|/([1-9][0-9]{0,8}))"
)
_PATIENCE = {  # the defaults block for four minutes when the server is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True)
class Git:
    """The code a run was made with: commit (40 hex digits) and whether tracked files differed from it."""

    commit: str
    dirty: bool


@dataclass(frozen=True)
class Version:
    """A registered version; `new` is False when it had been registered before."""

    name: str
    number: int
    run_id: str
    decision: str
    new: bool


@dataclass(frozen=True)
class Promotion:
    """Where `champion` points now and where it pointed; `changed` is False when it pointed there already."""

    name: str
    number: int
    previous: int | None
    changed: bool


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


def preflight(params: Params) -> None:
    """Are registry and store there, may we write, does the store keep its promises? For the start of a run.

    Raises RegistryError, StoreUnreachable or StoreError within about 15 seconds each.
    """
    with _mlflow(params.registry) as client:
        client.search_experiments(max_results=1)
    stores.check(params.store)


def register(
    params: Params,
    work: Path = Path("work"),
    lock: Path = Path("dvc.lock"),
    params_file: Path = Path("params.yaml"),
    git: Git | None = None,
) -> Version:
    """Record the run whose outputs are in `work` and register its candidate; the alias `challenger` moves to it.

    Keyed by the content of dvc.lock and of the recipe: registered before, the same version is returned and nothing new
    is logged. The delta is published first when it is not in the store. `git` is the state before the run.

    Raises RegistryError when outputs are missing or do not belong together, or MLflow does not answer; store errors.
    """
    evidence = _Evidence(params, work, lock, params_file)
    if not stores.holds(evidence.delta, params.store):
        stores.publish(work / "delta" / "shadow", params.store)
    recipe = evidence.recipe()
    key = bytes_digest(canonical_json({"lock": file_digest(lock), "recipe": bytes_digest(canonical_json(recipe))}))
    tags = evidence.tags(git) | {"shadowft.key": key, "shadowft.recipe": bytes_digest(canonical_json(recipe))}
    name = params.registry.name
    with _mlflow(params.registry) as client:
        found = _version_of(client, name, key)
        if found is None:
            _log(client, params.registry, recipe, tags, evidence)
            found = _version_of(client, name, key)
            assert found is not None
            version = Version(name, int(found.version), found.run_id, evidence.decision, new=True)
        else:
            version = Version(name, int(found.version), found.run_id, evidence.decision, new=False)
        client.set_registered_model_alias(name, CANDIDATE, str(version.number))
    print(
        f"{'registered' if version.new else 'registered before'}: {name} version {version.number}, verdict "
        f"{version.decision}, alias {CANDIDATE}",
        file=sys.stderr,
    )
    return version


def promote(registry: Registry, version: str = CANDIDATE, override: str | None = None) -> Promotion:
    """Point `champion` at a version (a number or an alias) whose recorded verdict says `promote`.

    `override` is the reason of a person who promotes against the verdict; it is recorded on the version with their name.
    Raises PromotionRefused with the verdict's reasons; RegistryError for an unknown version or a damaged record.
    """
    if override is not None and not override.strip():
        raise PromotionRefused("--override needs a reason in words; it is recorded with the version")
    with _mlflow(registry) as client:
        found = _find(client, registry.name, version)
        recipe, verdict = _record(client, found)
        decision, reasons = str(verdict.get("decision")), "; ".join(map(str, verdict.get("reasons", [])))
        if verdict.get("recipe_digest") != recipe["digest"]:
            raise RegistryError(
                f"{registry.name} version {found.version}: its verdict judged {verdict.get('recipe_digest')}, its recipe "
                f"makes {recipe['digest']}; register the run again"
            )
        if decision != "promote" and override is None:
            raise PromotionRefused(
                f"{registry.name} version {found.version}: the verdict is {decision}: {reasons or 'no reason given'}. "
                f"Nothing was moved; a person may promote with --override REASON"
            )
        before = _alias(client, registry.name, CHAMPION)
        number = int(found.version)
        if before == number:
            return Promotion(registry.name, number, before, changed=False)
        notes = {"shadowft.promoted_by": _user(), "shadowft.replaced": str(before or "none")}
        if decision != "promote":
            notes |= {"shadowft.override.by": _user(), "shadowft.override.reason": str(override).strip()[:500]}
        for name, value in notes.items():  # first the record, then the pointer
            client.set_model_version_tag(registry.name, found.version, name, value)
        client.set_registered_model_alias(registry.name, CHAMPION, found.version)
        if (now := _alias(client, registry.name, CHAMPION)) != number:
            raise RegistryError(
                f"{registry.name}: {CHAMPION} points at version {now}, {number} was set; someone else promoted at the "
                "same moment, look and repeat"
            )
    return Promotion(registry.name, number, before, changed=True)


def materialize(reference: str, out: Path, registry: Registry, instruct: Path | None = None) -> dict[str, Any]:
    """Rebuild a registered model, bit for bit, from its recipe: `models:/NAME@alias` or `models:/NAME/3`.

    `instruct` is the folder of the Instruct when its recorded reference cannot be resolved here. Returns the recipe.
    Raises RegistryError, store errors, PairError, or GraftError when the result is not what was registered; `out` is
    then absent.
    """
    name, version = _parsed(reference)
    with _mlflow(registry) as client:
        recipe = _recipe_of(client, _find(client, name, version))
    rebuild(recipe, out, instruct)
    return recipe


def rebuild(recipe: dict[str, Any], out: Path, instruct: Path | None = None) -> None:
    """Make the model folder of a registered recipe; see `materialize`."""
    from shadowft_core.graft import graft
    from shadowft_core.pair import resolve

    if instruct is None:
        instruct, _ = resolve(recipe["instruct"]["ref"])
    if (found := open_checkpoint(instruct).digest()) != recipe["instruct"]["digest"]:
        raise GraftError(
            f"{instruct}: its weights are {found}, the recipe wants {recipe['instruct']['digest']}; pass the right one "
            "with --instruct"
        )
    store = Store(**recipe["store"])
    with new_folder(out) as folder:
        parts = folder / ".parts"
        parts.mkdir()
        deltas = []
        for number, delta in enumerate(recipe["deltas"]):
            stores.fetch_delta(delta["digest"], store, parts / str(number))
            deltas.append((parts / str(number), float(delta["scale"])))
        made = graft(instruct, deltas, parts / "model", scope=recipe["scope"], dtype=recipe["dtype"])
        for what, expected, found in [
            ("the weights", recipe["digest"], made["digest"]),
            *(
                (f"file {file}", recipe["files"].get(file), made["files"].get(file))
                for file in _all_files(recipe, made)
            ),
        ]:
            if found != expected:
                raise GraftError(f"{out}: {what} came out as {found}, the recipe says {expected}; nothing was kept")
        for entry in (parts / "model").iterdir():
            entry.rename(folder / entry.name)
        shutil.rmtree(parts)


def read_recipe(path: Path) -> dict[str, Any]:
    """A registered recipe from its file. Raises RegistryError when it is not one."""
    raw = path.read_bytes() if path.stat().st_size <= LARGEST_RECIPE else b""
    try:
        recipe = json.loads(raw)
        complete = recipe["format"] == 1 and canonical_json(recipe) == raw
        _ = recipe["instruct"]["ref"], recipe["deltas"], recipe["digest"], recipe["files"], recipe["verdict"]["digest"]
        Store(**recipe["store"])
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise RegistryError(
            f"{path}: not a recipe of format 1 as `shadowft register` writes it; register the run again"
        )
    return dict(recipe)


def _all_files(*recipes: dict[str, Any]) -> list[str]:
    return sorted({file for recipe in recipes for file in recipe["files"]})


class _Evidence:
    """The outputs of one run, read once and found to belong together."""

    def __init__(self, params: Params, work: Path, lock: Path, params_file: Path) -> None:
        grafted = work / "grafted" / "shadow"
        self.params = params
        self.lock = lock
        self.work = work
        self.files = [
            work / "report.html",
            work / "verdict.json",
            lock,
            params_file,
            grafted / "recipe.json",
            grafted / "receipt.json",
        ]
        self.graft = _json(grafted / "recipe.json")
        self.pair = _json(work / "pair" / "pair.json")
        self.verdict = _json(work / "verdict.json")
        self.delta = file_digest(_there(work / "delta" / "shadow" / "delta.json"))
        self.certificate = _json(work / "delta" / "shadow" / "delta.json")
        for path in self.files:
            _there(path)
        try:
            self.decision = str(self.verdict["decision"])
            for what, expected, found in [
                ("the Instruct", self.graft["instruct"]["digest"], self.pair["instruct"]["digest"]),
                ("the delta", [delta["digest"] for delta in self.graft["deltas"]], [self.delta]),
                ("the judged model", self.graft["digest"], self.verdict["recipe_digest"]),
            ]:
                if expected != found:
                    raise RegistryError(
                        f"{work}: {what} is {found}, recipe.json says {expected}; outputs of different runs, run "
                        "`dvc repro` and register again"
                    )
        except (KeyError, TypeError) as error:
            raise RegistryError(f"{work}: recipe, pair or verdict lacks {error}; run `dvc repro` again") from None

    def recipe(self) -> dict[str, Any]:
        """What is registered: the recipe of the graft, and where its ingredients are."""
        store = stores.located(self.params.store)
        uri = store.uri if "://" in store.uri else str(Path(store.uri).absolute())
        return self.graft | {
            "instruct": self.pair["instruct"],
            "base": self.pair["base"],
            "store": {"uri": uri, "endpoint": store.endpoint, "region": store.region},
            "verdict": {"digest": file_digest(self.work / "verdict.json"), "decision": self.decision},
            "lineage": {"lock": file_digest(self.lock), "data": self._data_digest(), "train": self._train_digest()},
        }

    def tags(self, git: Git | None) -> dict[str, str]:
        """Lineage, for the run and for the version."""
        return {
            "shadowft.lock": file_digest(self.lock),
            "shadowft.data": self._data_digest(),
            "shadowft.base": str(self.pair["base"]["digest"]),
            "shadowft.instruct": str(self.pair["instruct"]["digest"]),
            "shadowft.delta": self.delta,
            "shadowft.model": str(self.graft["digest"]),
            "shadowft.scale": str(self.graft["deltas"][0]["scale"]),
            "shadowft.verdict": file_digest(self.work / "verdict.json"),
            "shadowft.decision": self.decision,
            "shadowft.git.commit": git.commit if git else "unknown",
            "shadowft.git.dirty": str(git.dirty).lower() if git else "unknown",
        }

    def metrics(self) -> dict[str, float]:
        """`ARM/TASK`: mean score of every arm and task."""
        found = {}
        for path in sorted((self.work / "scores").glob("*/*/scores.json")):
            scores = _json(path)
            for task, entry in scores["tasks"].items():
                found[f"{scores['arm']}/{task}"] = float(entry["mean"])
        return found

    def _data_digest(self) -> str:
        return str(self.certificate.get("train", {}).get("data_digest", "unknown"))

    def _train_digest(self) -> str:
        return str(self.certificate.get("train", {}).get("digest", "unknown"))


def _there(path: Path) -> Path:
    if not path.is_file():
        raise RegistryError(f"{path}: no such file; run `dvc repro` first")
    return path


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_there(path).read_bytes())
    except ValueError as error:
        raise RegistryError(f"{path}: not JSON: {error}; run `dvc repro` again") from None
    if not isinstance(found, dict):
        raise RegistryError(f"{path}: a JSON object is wanted; run `dvc repro` again")
    return found


@contextmanager
def _mlflow(registry: Registry) -> Iterator[Any]:
    """An MLflow client with bounded waits; whatever MLflow or its database raise becomes one line."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or registry.tracking_uri
    shown = re.sub(r"//[^@/]*@", "//***@", uri)
    if uri.startswith("sqlite:///"):
        _database(uri).parent.mkdir(parents=True, exist_ok=True)
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        yield mlflow.MlflowClient()
    except ShadowError:
        raise
    except (MlflowException, SQLAlchemyError) as error:
        text = " ".join(str(error).split())[:300]
        raise RegistryError(
            f"registry at {shown}: {text}; check that it runs and registry.tracking_uri is right"
        ) from None


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def _experiment(client: Any, registry: Registry) -> str:
    """The experiment named as the model. With a database file the artifacts live beside it."""
    found = client.get_experiment_by_name(registry.name)
    if found is not None:
        return str(found.experiment_id)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or registry.tracking_uri
    beside = (_database(uri).parent / "artifacts").absolute().as_uri() if uri.startswith("sqlite:///") else None
    return str(client.create_experiment(registry.name, artifact_location=beside))


def _log(client: Any, registry: Registry, recipe: dict[str, Any], tags: dict[str, str], evidence: _Evidence) -> None:
    """One finished run and one version. The version carries the key from its first moment, so half a record is no record."""
    import mlflow

    import shadowft_core

    experiment = _experiment(client, registry)
    for rest in client.search_runs([experiment], f"tags.`shadowft.key` = '{tags['shadowft.key']}'"):
        if rest.info.status == "RUNNING":  # of a killed process
            client.set_terminated(rest.info.run_id, "KILLED")
    with mlflow.start_run(
        experiment_id=experiment, run_name=f"{registry.name} {recipe['digest'][7:19]}", tags=tags
    ) as run:
        mlflow.log_params(_flat(evidence.params.model_dump(mode="json")))
        mlflow.log_metrics(evidence.metrics())
        for path in evidence.files:
            mlflow.log_artifact(str(path))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "recipe.json")
            file.write_bytes(canonical_json(recipe))
            model = mlflow.pyfunc.log_model(
                name="recipe",
                python_model=str(Path(shadowft_core.__file__).with_name("recipe_model.py")),
                artifacts={"recipe": str(file)},
                pip_requirements=["shadowft"],
                metadata={"shadowft.recipe": tags["shadowft.recipe"]},
            )
    try:
        client.create_registered_model(registry.name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(registry.name, model.model_uri, run_id=run.info.run_id, tags=tags)


def _flat(tree: dict[str, Any], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{above}{name}.")
        else:
            found[above + name] = re.sub(r"//[^@/]*@", "//***@", str(value))[:6000]
    return found


def _version_of(client: Any, name: str, key: str) -> Any | None:
    """The first version with this key, so that two who register the same run at once agree."""
    found = client.search_model_versions(f"name = '{name}' and tags.`shadowft.key` = '{key}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _alias(client: Any, name: str, alias: str) -> int | None:
    number = client.get_registered_model(name).aliases.get(alias)
    return None if number is None else int(number)


def _parsed(reference: str) -> tuple[str, str]:
    match = _REFERENCE.fullmatch(reference)
    if not match:
        raise RegistryError(f"{reference!r}: models:/NAME@ALIAS or models:/NAME/VERSION is wanted")
    return match[1], match[2] or match[3]


def _find(client: Any, name: str, version: str) -> Any:
    """A version by number or alias."""
    from mlflow.exceptions import MlflowException

    _parsed(f"models:/{name}/{version}" if version.isdigit() else f"models:/{name}@{version}")
    try:
        if version.isdigit():
            return client.get_model_version(name, version)
        return client.get_model_version_by_alias(name, version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise RegistryError(
                f"no version {version!r} of {name!r} in the registry; `shadowft register` makes one"
            ) from None
        raise


def _recipe_of(client: Any, version: Any) -> dict[str, Any]:
    """The recipe of a version, held against the digest that the version carries."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{version.name}/{version.version}/artifacts/recipe.json"
        file = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        found, expected = file_digest(file), version.tags.get("shadowft.recipe")
        if found != expected:
            raise RegistryError(
                f"{version.name} version {version.version}: its recipe is {found}, registered was {expected}; the record "
                "was changed, register the run again"
            )
        return read_recipe(file)


def _record(client: Any, version: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe and verdict of a version; the recipe holds the verdict's digest, so neither can be exchanged alone."""
    import mlflow

    recipe = _recipe_of(client, version)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(
            mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="verdict.json", dst_path=folder)
        )
        found, expected = file_digest(file), recipe["verdict"]["digest"]
        if found != expected:
            raise RegistryError(
                f"{version.name} version {version.version}: verdict.json of its run is {found}, registered was {expected}; "
                "the record was changed, register the run again"
            )
        return recipe, _json(file)


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"
