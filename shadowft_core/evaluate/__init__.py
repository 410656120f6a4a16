"""The stage evaluate: scores every arm item by item, on the same items, prompts and template."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.bench import Bench, open_bench
from shadowft_core.evaluate.engines import Arm, Deltas, Engine, open_engine
from shadowft_core.evaluate.engines.models import load_folder, load_grafted
from shadowft_core.evaluate.items import Asked, Item, TaskScore
from shadowft_core.evaluate.kl import Divergence
from shadowft_core.files import (
    Fields,
    canonical_json,
    file_digest,
    new_folder,
    read_json_object,
    read_record,
    write_json_atomically,
)
from shadowft_core.grafting import Options, deltas_of, options_of
from shadowft_core.limits import RECORD_BYTES
from shadowft_core.params import Evaluate, Render
from shadowft_core.weights import open_checkpoint
from shadowft_core.weights.pairfile import read_pair

RENDER = Render()
Found = tuple[dict[str, TaskScore], dict[str, Any] | None]  # scores by task, and the entry `kl`
__all__ = [
    "Arm",
    "Asked",
    "Bench",
    "Engine",
    "Item",
    "NotRebuiltError",
    "TaskScore",
    "Versions",
    "evaluate",
    "evaluate_seeds",
    "load_folder",
    "load_grafted",
    "open_bench",
    "open_engine",
    "open_versions",
]


class NotRebuiltError(EvaluationError):
    """A registered version cannot be scored here: its recipe gives another model, or the engine cannot serve it."""


def evaluate(
    instruct: Path,
    data: Path,
    delta: Path | None,
    grafted: Path | None,
    route: str,
    params: Evaluate,
    out: Path,
    render: Render = RENDER,
) -> None:
    """Score the untouched Instruct, or both arms of one delta; writes `out/ARM/{scores.json,items.jsonl}`.

    Without `delta`, the arm is `instruct`. With it, the arms are ROUTE (scale 1, grafted in memory with the recipe's
    scope, dtype, rule and waivers) and ROUTE_scaled (the `grafted` folder). If both are the same model, bit for bit, it
    is scored once.

    Raises what `open_bench` and `Bench.score` raise; EvaluationError when the weights, delta or Instruct of the grafted
    folder are not those of its recipe; GraftError when it was grafted without storing a delta. Then nothing is written.
    """
    if (delta is None) != (grafted is None):
        raise EvaluationError(
            f"delta {delta}, grafted {grafted}: pass both to score a delta, or neither to score the Instruct"
        )
    recipe = None if delta is None or grafted is None else _checked_recipe(instruct, delta, grafted)
    label = _label(instruct, delta)
    with (
        open_bench(instruct, data, params, params.domain, params.guards, render) as bench,
        open_engine(instruct, bench.tokenizer, params) as engine,
        new_folder(out) as folder,
    ):
        bench.journals.expect(engine, 1 if recipe is None or _is_whole(recipe) else 2)
        kl = Divergence(bench, params.kl_answers)

        def write(arm: str, scale: float, digest: str, found: Found) -> None:
            about = {"arm": arm, "scale": scale, "model_digest": digest, "label": label}
            _write_arm(folder / arm, about, bench, found)

        def score(arm: str, deltas: Deltas, options: Options) -> tuple[str, Found]:
            with engine.arm(deltas, options) as model:
                scores = bench.score(model, arm, untouched=not deltas)
                if not deltas:
                    kl.refer(lambda: nullcontext(model))
                return model.digest, (scores, kl.of(model))

        options = Options() if recipe is None else options_of(recipe)
        engine.check([] if delta is None else [(delta, 1.0)], options, bench.likelihood)
        if delta is None or recipe is None:
            write("instruct", 0.0, *score("instruct", [], options))
            return
        kl.refer(lambda: engine.arm([], Options()))
        digest, found = score(route, [(delta, 1.0)], replace(options, scale_for=()))  # scale 1 everywhere
        write(route, 1.0, digest, found)
        scaled, scale = f"{route}_scaled", recipe["deltas"][0]["scale"]
        if digest != recipe["digest"]:
            digest, found = score(scaled, [(delta, scale)], options)
        if digest != recipe["digest"]:
            raise EvaluationError(
                f"{grafted}: recipe.json gives the model {digest}, the folder has {recipe['digest']}; "
                "run `shadowft graft` again"
            )
        write(scaled, scale, digest, found)


def evaluate_seeds(
    instruct: Path,
    data: Path,
    deltas: Mapping[int, Path],
    grafted: Path,
    route: str,
    params: Evaluate,
    out: Path,
    render: Render = RENDER,
) -> None:
    """Score the arms of further training seeds, keyed by seed, on the items of `evaluate`; writes
    `out/SEED/ARM/{scores.json,items.jsonl}`.

    Scale and options of ROUTE_scaled are those of `grafted/recipe.json`, of the first seed. The distance to the
    Instruct (`kl`) is not measured. Raises what `open_bench` and `Bench.score` raise, EvaluationError if the recipe is
    not one of the stage graft. Then nothing is written.
    """
    path = grafted / "recipe.json"
    recipe = read_json_object(path)
    [(_, scale)], options = deltas_of(recipe, path), options_of(recipe)
    arms = {route: (1.0, replace(options, scale_for=())), f"{route}_scaled": (scale, options)}
    with (
        open_bench(instruct, data, params, params.domain, params.guards, render) as bench,
        open_engine(instruct, bench.tokenizer, params) as engine,
        new_folder(out) as folder,
    ):
        bench.journals.expect(engine, len(deltas) * (1 if _is_whole(recipe) else 2))
        for seed, delta in deltas.items():
            engine.check([(delta, 1.0)], options, bench.likelihood)
            scores: dict[str, TaskScore] = {}
            for arm, (at, how) in arms.items():
                with engine.arm([(delta, at)], how) as model:
                    if not (scores and _is_whole(recipe)):
                        scores = bench.score(model, f"{arm}, seed {seed}")
                    about = {"arm": arm, "scale": at, "model_digest": model.digest, "seed": seed}
                about |= {"label": _label(instruct, delta)}
                _write_arm(folder / str(seed) / arm, about, bench, (scores, {"not_measured": "a further seed"}))


class Versions:
    """Scores registered versions of a model on one bench, on the items of the other arms. Made by `open_versions`.

    A version is what its `recipe` makes of the Instruct and `deltas`. Both methods raise what `Bench.score` raises, and
    NotRebuiltError if the model is not the recipe's, or the engine cannot serve it.
    """

    def __init__(self, instruct: Path, bench: Bench, engine: Engine, answers: int) -> None:
        self._instruct, self._bench, self._engine = instruct, bench, engine
        self._kl = Divergence(bench, answers)
        self._referred = False

    def write(self, folder: Path, arm: str, deltas: Deltas, recipe: dict[str, Any], version: int) -> None:
        """Score a version on all tasks as the arm `arm`; writes `folder/ARM/{scores.json,items.jsonl}`.

        `scale` is null if the recipe merges several deltas.
        """
        if not self._referred:
            self._kl.refer(lambda: self._engine.arm([], Options()))
            self._referred = True
        with self._made(deltas, recipe, version) as model:
            found = self._bench.score(model, arm), self._kl.of(model)
        about = {"arm": arm, "scale": deltas[0][1] if len(deltas) == 1 else None, "version": version}
        about |= {"model_digest": recipe["digest"], "label": _label(self._instruct, deltas[0][0])}
        _write_arm(folder / arm, about, self._bench, found)

    def domain(self, deltas: Deltas, recipe: dict[str, Any], version: int) -> dict[str, TaskScore]:
        """The scores of a version on the tasks of the domain; writes nothing."""
        with self._made(deltas, recipe, version) as model:
            return self._bench.score(model, f"version {version}", role="domain")

    @contextmanager
    def _made(self, deltas: Deltas, recipe: dict[str, Any], version: int) -> Iterator[Arm]:
        options = options_of(recipe)
        try:
            self._engine.check(deltas, options, self._bench.likelihood)
        except EvaluationError as error:
            raise NotRebuiltError(f"version {version}: {error}") from None
        with self._engine.arm(deltas, options) as model:
            if model.digest != recipe["digest"]:
                raise NotRebuiltError(
                    f"version {version}: its recipe gives the model {model.digest}, but records {recipe['digest']}; "
                    "another version of this program registered it: register and promote a new run"
                )
            yield model

    @property
    def asked(self) -> tuple[str, dict[str, Any]]:
        """Digest of the template, and settings of generation."""
        return self._bench.template_digest, self._bench.generation


@contextmanager
def open_versions(
    instruct: Path, data: Path, params: Evaluate, models: int, render: Render = RENDER
) -> Iterator[Versions]:
    """Open bench and engine to score registered versions, at most `models`. Raises what `open_bench` raises."""
    with (
        open_bench(instruct, data, params, params.domain, params.guards, render) as bench,
        open_engine(instruct, bench.tokenizer, params) as engine,
    ):
        bench.journals.expect(engine, models)
        yield Versions(instruct, bench, engine, params.kl_answers)


def _checked_recipe(instruct: Path, delta: Path, grafted: Path) -> dict[str, Any]:
    path = grafted / "recipe.json"
    try:
        recipe = read_json_object(path, RECORD_BYTES, EvaluationError, finite=True)
        [(digest, _)] = deltas_of(recipe, path)
        expected = {
            delta / "delta.json": (digest, file_digest(delta / "delta.json")),
            instruct: (recipe["instruct"]["digest"], open_checkpoint(instruct).digest()),
            grafted: (recipe["digest"], open_checkpoint(grafted).digest()),
        }
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise EvaluationError(
            f"{path}: not the recipe of one delta ({error!r:.200}); run `shadowft graft` again"
        ) from error
    for place, (recorded, digest) in expected.items():
        if recorded != digest:
            raise EvaluationError(f"{place}: digest {digest}, {path} has {recorded}; run `shadowft graft` again")
    return recipe


def _is_whole(recipe: dict[str, Any]) -> bool:
    """Whether both arms are the same model: scale 1 everywhere."""
    return recipe["deltas"][0]["scale"] == 1 and not recipe.get("scale_for")


class _Against(Fields):
    digest: str


class _Delta(Fields):
    base: _Against


def _label(instruct: Path, delta: Path | None) -> str:
    """The labels, from pair.json, of the Instruct and of the model that was tuned; empty if there are none."""
    pair = instruct.parent / "pair.json"
    if not pair.is_file():
        return ""
    sides = read_pair(pair)
    tuned = None if delta is None else read_record(delta / "delta.json", _Delta, "extract it again").base.digest
    used = [sides.instruct] if tuned in (None, sides.instruct.digest) else [sides.instruct, sides.base]
    return "; ".join(dict.fromkeys(side.label for side in used if side.label))


def _write_arm(folder: Path, about: dict[str, Any], bench: Bench, found: Found) -> None:
    """Write the two files that docs/architecture.md describes under Scores."""
    scores, kl = found
    about = about | {"template_digest": bench.template_digest, "generation": bench.generation, "kl": kl}
    tasks = {name: score.summary() for name, score in scores.items()}
    write_json_atomically(folder / "scores.json", {"format": 1, **about, "tasks": tasks})
    lines = [
        canonical_json({"task": name, **asdict(item)}) for name, score in sorted(scores.items()) for item in score.items
    ]
    (folder / "items.jsonl").write_bytes(b"\n".join(lines) + b"\n")
