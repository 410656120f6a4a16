"""Extract and graft are killed at every change of a file: no incomplete result, and the next run succeeds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Published, contents, make_delta
from tests.faults.victim import KILLED, ended, spawn, verb
from tests.fixtures.models import Pair

ROOT = Path(__file__).parent.parent.parent
SEEN = {"nothing": 0, "former": 0, "set aside": 0, "new": 0}
FORMER = {"former.txt": b"a result of yesterday"}


def run(arguments: list[str], folder: Path, kill: int | None) -> int:
    return ended(spawn(verb, arguments, {}, folder / "log", (kill, folder) if kill else None))


def killed(arguments: list[str], out: Path, number: int, former: bool, expected: dict[str, bytes]) -> str | None:
    """Kill the verb at its `number`-th change and run it again; return what the kill left, None for fewer changes.

    With `former`, `out` holds an earlier result, and at any moment it or the new one is complete. After the second run
    only the right folder exists.
    """
    shutil.rmtree(out.parent, ignore_errors=True)
    out.mkdir(parents=True)
    if former:
        (out / "former.txt").write_bytes(FORMER["former.txt"])
    else:
        out.rmdir()
    code = run(arguments, out.parent, number)
    log = (out.parent / "log").read_text()
    (out.parent / "log").unlink()
    assert code in (0, KILLED), log
    if code == 0:
        return None
    found = contents(out) if out.exists() else None
    aside = out.with_name(".out.old")
    if found is None:
        seen = "set aside" if former else "nothing"
        assert not former or contents(aside) == FORMER
    else:
        seen = "former" if former and found == FORMER else "new"
        assert seen == "former" or found == expected
    assert run(arguments, out.parent, None) == 0
    (out.parent / "log").unlink()
    assert contents(out) == expected
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    return seen


@pytest.fixture(scope="session")
def arguments(
    tmp_path_factory: pytest.TempPathFactory, tiny_pair: Pair
) -> Callable[[str, Path], tuple[list[str], dict[str, bytes]]]:
    """`arguments("graft", out)`: the command line, and the files of an undisturbed run of it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    delta: Published = make_delta(folder, tiny_pair, seed=6)
    inputs = {
        "extract": ["extract", "--base", str(tiny_pair.base), "--tuned", str(folder / "tuned")],
        "graft": ["graft", "--instruct", str(tiny_pair.instruct), "--delta", str(delta.folder)],
    }
    inputs["graft"] += ["--scale", "0.75", "--params", str(ROOT / "params.yaml")]
    made: dict[str, dict[str, bytes]] = {}

    def of(name: str, out: Path) -> tuple[list[str], dict[str, bytes]]:
        if name not in made:
            assert run([*inputs[name], "--out", str(folder / name)], folder, None) == 0, (folder / "log").read_text()
            made[name] = contents(folder / name)
        return [*inputs[name], "--out", str(out)], made[name]

    return of


@pytest.mark.parametrize("name", ["extract", "graft"])
def test_a_verb_killed_early_midway_or_late_leaves_the_former_result_or_nothing(
    name: str, arguments: Callable[..., object], tmp_path: Path
) -> None:
    line, expected = arguments(name, tmp_path / "run" / "out")  # type: ignore[misc]
    for number, former in ((3, True), (9, False), (20, True)):
        seen = killed(line, tmp_path / "run" / "out", number, former, expected)
        assert seen == ("former" if former else "nothing")


@pytest.mark.faults
@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("name", ["extract", "graft"])
def test_a_verb_killed_at_any_change_of_a_file_can_be_repeated(
    name: str, former: bool, arguments: Callable[..., object], tmp_path: Path, figures: Callable[[str], None]
) -> None:
    line, expected = arguments(name, tmp_path / "run" / "out")  # type: ignore[misc]
    counts = dict(SEEN)
    while seen := killed(line, tmp_path / "run" / "out", sum(counts.values()) + 1, former, expected):
        counts[seen] += 1
    assert sum(counts.values()) >= 30
    assert counts["new"] > 0
    assert counts["former" if former else "nothing"] > 20
    figures(f"{sum(counts.values())} kills; seen after them: {counts}; all re-runs gave the same bytes")


def test_a_former_result_survives_a_second_kill(arguments: Callable[..., object], tmp_path: Path) -> None:
    out = tmp_path / "run" / "out"
    aside = out.with_name(".out.old")
    line, expected = arguments("extract", out)  # type: ignore[misc]
    for number in range(1, 9):
        aside.mkdir(parents=True)
        (aside / "former.txt").write_bytes(FORMER["former.txt"])
        assert run(line, out.parent, number) == KILLED
        assert FORMER in [contents(folder) for folder in (out, aside) if folder.exists()], number
        assert run(line, out.parent, None) == 0
        assert contents(out) == expected
        shutil.rmtree(out.parent)
