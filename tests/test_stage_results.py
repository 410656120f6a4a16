"""In a workspace a stage runs again when its number changes. So the number must change when the results do.

tests/fixtures/stage_results.py makes fixed inputs and runs each stage; stage_results.json has what it wrote.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.workspace.stages import numbers
from tests.fixtures.checkouts import run
from tests.fixtures.cli import Shadowft
from tests.fixtures.stage_results import FLOATING, RECORDED, TOLERANCE, differences, run_stage, write_inputs

ROOT = Path(__file__).parent.parent
RESULTS: dict[str, dict[str, Any]] = json.loads(RECORDED.read_bytes())
EXACT = [stage for stage in numbers() if stage not in FLOATING]
Results = Callable[[str], Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    write_inputs(folder := tmp_path_factory.mktemp("stages"))
    return folder


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return {}


@pytest.fixture
def results(place: Path, known: dict[str, Any], shadowft: Shadowft) -> Results:
    """The results of a stage; runs the stages before it whose outputs are exact. No other outputs are read."""

    def verb(*words: str) -> None:
        ended = shadowft(*words)
        assert ended.code == 0, ended

    def of(stage: str) -> Any:
        order = list(numbers())
        for one in [name for name in order[: order.index(stage)] if name in EXACT] + [stage]:
            if one not in known:
                known[one] = run_stage(one, place, verb)
        return known[stage]

    return of


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=pytest.mark.slow if stage in FLOATING else ()) for stage in numbers()]
)
def test_the_number_changes_when_the_results_do(stage: str, results: Results) -> None:
    found = list(differences(RESULTS[stage]["results"], results(stage), TOLERANCE.get(stage, 1e-9)))
    number, recorded = numbers()[stage], RESULTS[stage]["number"]
    assert number != recorded or not found, (
        f"the results of {stage} changed: {found[:5]}; if that is intended, raise its number in "
        "shadowft_core/workspace/stages.yaml, then run `python -m tests.fixtures.stage_results`"
    )
    assert number == recorded, "the number was raised: run `python -m tests.fixtures.stage_results`"


def leaves(value: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON tree."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield above
    else:
        for key, one in items:
            yield from leaves(one, *above, key)


@pytest.mark.parametrize("stage", list(numbers()))
def test_a_change_of_any_value_is_noticed(stage: str) -> None:
    recorded, tolerance = RESULTS[stage]["results"], TOLERANCE.get(stage, 1e-9)
    places = list(leaves(recorded))
    assert len(places) >= (2 if stage == "start" else 4)
    assert list(differences(recorded, recorded, tolerance)) == []
    for path in places[:: 1 + len(places) // 50]:
        changed = copy.deepcopy(recorded)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        value = parent[path[-1]]
        parent[path[-1]] = value * 1.001 + 1e-4 if isinstance(value, float) else [value]
        assert len(list(differences(recorded, changed, tolerance))) == 1, path


@pytest.mark.slow
def test_the_results_are_the_same_on_a_cpu_with_fewer_instructions(tmp_path: Path, monkeypatch: Any) -> None:
    """PyTorch and oneDNN without AVX, as on an old CPU; the record was made with all that there is."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "SSE4_2")
    monkeypatch.setenv("NPY_DISABLE_CPU_FEATURES", "AVX2 FMA3")
    out = tmp_path / "old_cpu.json"
    run(ROOT, sys.executable, "-m", "tests.fixtures.stage_results", str(out))
    found = json.loads(out.read_bytes())
    for stage in numbers():
        assert not list(differences(RESULTS[stage]["results"], found[stage]["results"], TOLERANCE.get(stage, 1e-9)))
