"""The stage seeds: train, extract and score a route again with each further seed of `train.seeds`.

The first seed ships, and other stages train and score it. The further ones show how much of a difference between two
ways of tuning is due to chance in training. They are trained and scored like the first: the same rows, settings, tasks
and scale, by the same code.
"""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from shadowft_core.delta import extract
from shadowft_core.errors import CheckpointError, TrainError, say
from shadowft_core.evaluate import evaluate_seeds
from shadowft_core.files import (
    Fields,
    Record,
    bytes_digest,
    canonical_json,
    file_digest,
    make_folder,
    new_folder,
    read_record,
    write_json_atomically,
)
from shadowft_core.limits import COUNT
from shadowft_core.params import Params
from shadowft_core.train import run_alone
from shadowft_core.weights import open_checkpoint

WAITING = Path("var/seeds")


class _Trained(Fields):
    """What seeds.json copies from train.json. `train.command` may tell less than all losses."""

    steps: int | None = Field(None, ge=0, le=COUNT)
    first_loss: float | None = None
    last_loss: float | None = None
    valid_loss: float | None = None


class _Graft(Fields):
    digest: str


class _Scored(Fields):
    model_digest: str


class _Key(Record):
    key: str


def further_seeds(
    model: Path,
    instruct: Path,
    data: Path,
    start: Path,
    grafted: Path,
    route: str,
    params: Params,
    out: Path,
    train_options: Sequence[str] = (),
) -> None:
    """Write `out/seeds.json` and, for each further seed of the route, `out/SEED/ARM/{scores.json,items.jsonl}`.

    With one seed, only seeds.json is written, and nothing is read. `grafted` is the graft of the first seed, whose
    scale is used. `train_options` are passed on to `shadowft train`, which runs in a process of its own, so that its
    settings of torch do not reach the evaluation.

    Deltas that are finished wait in var/seeds until all seeds are scored, so an interrupted run goes on from there.
    Raises what `shadowft train`, `extract` and `evaluate_seeds` raise; then `out` is unchanged.
    """
    settings = params.train_for(route)
    first, *others = settings.seeds
    facts: dict[str, Any] = {"format": 1, "route": route, "first": first, "further": []}
    if not others:
        say(f"seeds: {route} has one seed, nothing to train")
        with new_folder(out) as folder:
            write_json_atomically(folder / "seeds.json", facts)
        return
    waiting, inputs = WAITING / route, _inputs(model, instruct, data, start, route, params)
    deltas = {}
    for number, seed in enumerate(others, start=1):
        say(f"seeds: {route}, seed {seed} ({number} of {len(others)} further ones)")
        place = waiting / str(seed)
        if _key(place) != (key := bytes_digest(canonical_json(inputs | {"seed": seed}))):
            shutil.rmtree(place, ignore_errors=True)
            make_folder(place)
            write_json_atomically(place / "key.json", {"key": key})
        if not any((place / name).is_dir() for name in ("tuned", "delta")):
            given = {"--model": model, "--instruct": instruct, "--data": data, "--start": start}
            words = [str(word) for pair in given.items() for word in pair]
            words += ["--route", route, "--seed", str(seed), "--out", str(place / "tuned"), *train_options]
            run_alone(["train", *words])
        if not (place / "delta").is_dir():
            shutil.copyfile(place / "tuned" / "train.json", place / "train.json")
            extract(model, place / "tuned", place / "delta", standing=params.extract.ignore)
        shutil.rmtree(place / "tuned", ignore_errors=True)
        deltas[seed] = place / "delta"
    with new_folder(out) as folder:
        evaluate_seeds(instruct, data, deltas, grafted, route, params.evaluate, folder / "scores", params.render)
        for scored in (folder / "scores").iterdir():
            scored.rename(folder / scored.name)
        (folder / "scores").rmdir()
        if settings.command is not None:
            _require_different(
                folder,
                route,
                first,
                read_record(grafted / "recipe.json", _Graft, "run graft again", error=TrainError).digest,
            )
        for seed, delta in deltas.items():
            trained = read_record(delta.parent / "train.json", _Trained, "train again", error=TrainError)
            told = {"seed": seed, "delta": file_digest(delta / "delta.json")}
            facts["further"].append(told | trained.model_dump())
        write_json_atomically(folder / "seeds.json", facts)
    shutil.rmtree(waiting)


def _require_different(folder: Path, route: str, first: int, digest: str) -> None:
    """Raise TrainError if two seeds gave the same model: then the command does not use SHADOWFT_SEED.

    `digest` is that of the graft of the first seed, at the scale that all seeds are judged at.
    """
    seen = {digest: first}
    for scored in sorted(folder.glob(f"*/{route}_scaled/scores.json")):
        seed = int(scored.parents[1].name)
        if (other := seen.setdefault(read_record(scored, _Scored, "score the seeds again").model_digest, seed)) != seed:
            raise TrainError(
                f"route {route}: seeds {other} and {seed} gave the same weights, so train.command does not use "
                "SHADOWFT_SEED; let it, or set train.seeds to one seed"
            )


def _key(place: Path) -> str | None:
    """The digest of what the seed in this folder is trained from; None if there is none."""
    with suppress(CheckpointError):
        return read_record(place / "key.json", _Key, "remove it").key
    return None


def _inputs(model: Path, instruct: Path, data: Path, start: Path, route: str, params: Params) -> dict[str, Any]:
    """What a training depends on, besides its seed."""
    settings = params.train_for(route)
    return {
        "settings": settings.model_dump(mode="json", exclude={"seed", "seeds"}),
        "render": params.render.model_dump(mode="json"),
        "replay": params.routes[route].replay,
        "ignore": params.extract.ignore,
        "model": open_checkpoint(model).digest(),
        "instruct": open_checkpoint(instruct).digest(),
        "data": file_digest(data / "data-report.json"),
        "start": file_digest(start / "start.json"),
    }
