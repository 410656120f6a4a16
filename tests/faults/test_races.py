"""Eight processes publish one digest at the same moment, on a real S3 server."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core import store as room
from shadowft_core.errors import StoreConflictError
from shadowft_core.files import canonical_json, file_digest
from shadowft_core.params import Store
from shadowft_core.weights import build_header, write_safetensors
from tests.faults.conftest import Place, contents
from tests.faults.victim import barrier, ended, spawn

WRITERS, ROUNDS = 8, 50


def write(start: Any, rounds: list[tuple[Path, Store]], environment: Mapping[str, str], log: Path) -> None:
    """One writer: in every round, wait for the others, publish, and record the outcome."""
    os.environ.update(environment)
    outcomes = []
    for folder, store in rounds:
        start.wait(120)
        try:
            outcomes.append(room.publish(folder, store))
        except StoreConflictError as error:
            outcomes.append(f"conflict: {error}")
    log.write_text(json.dumps(outcomes))


def race(count: int, folders: list[Path], fresh: Callable[[], Place], logs: Path) -> list[tuple[Place, list[str]]]:
    """`count` rounds in which writer N publishes folder N; the outcomes of each round, by writer."""
    places = [fresh() for _ in range(count)]
    start = barrier(WRITERS)
    processes = [
        spawn(write, start, [(folder, place.direct) for place in places], dict(os.environ), logs / f"{number}.json")
        for number, folder in enumerate(folders)
    ]
    assert [ended(process, 900) for process in processes] == [0] * WRITERS
    outcomes = [json.loads((logs / f"{number}.json").read_text()) for number in range(WRITERS)]
    return list(zip(places, [list(by_round) for by_round in zip(*outcomes, strict=True)], strict=True))


@pytest.fixture(scope="session")
def rivals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight folders with one certificate and different weights, so they write the same claim. They have few objects, so
    that the writers reach the claim at the same time."""
    folders = [tmp_path_factory.mktemp(f"rival-{number}") for number in range(WRITERS)]
    for number, folder in enumerate(folders):
        weights = np.full(2000, number, np.float32)
        header = build_header({"w": ("F32", weights.shape)})
        write_safetensors(folder / "dense.safetensors", header, lambda _, weights=weights: iter([weights]))
        (folder / "delta.json").write_bytes(canonical_json({"format": 2, "tensors": {"w": {}}}))
    return folders


def run_rounds(count: int, rivals: list[Path], fresh: Callable[[], Place], folder: Path) -> tuple[int, int]:
    """Rounds with different and with the same content; (conflicts of the first, successes of the second)."""
    conflicts = successes = 0
    digest = file_digest(rivals[0] / "delta.json")
    for place, outcomes in race(count, rivals, fresh, folder):
        winners = [number for number, outcome in enumerate(outcomes) if outcome == digest]
        assert len(winners) == 1, outcomes
        assert all("with another dense.safetensors" in x for x in outcomes if x != digest), outcomes
        conflicts += WRITERS - 1
        assert place.visible() == [digest]
        room.fetch_delta(digest, place.direct, folder / "won")
        assert contents(folder / "won") == contents(rivals[winners[0]])
        shutil.rmtree(folder / "won")
    for place, outcomes in race(count, rivals[:1] * WRITERS, fresh, folder):
        assert outcomes == [digest] * WRITERS
        assert place.visible() == [digest]
        successes += WRITERS
    return conflicts, successes


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_one_of_eight_writers_of_a_claim_wins_fifty_times(
    fresh_place: Callable[[], Place],
    rivals: list[Path],
    tmp_path: Path,
    figures: Callable[[str], None],
) -> None:
    started = time.monotonic()
    conflicts, successes = run_rounds(ROUNDS, rivals, fresh_place, tmp_path)
    figures(f"{ROUNDS} rounds of different content: {ROUNDS} single winners, {conflicts} conflicts")
    figures(f"{ROUNDS} rounds of the same content: {successes} of {ROUNDS * WRITERS} succeeded")
    figures(f"{time.monotonic() - started:.0f} s in all")
