"""Every argument and option of every verb, with values that a shell, a terminal or an encoding would take badly.

The value is a harmless literal or refused in one line, and nothing in it runs.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.cli import Ended, Shadowft, leaf_verbs
from tests.fixtures.runs import Released
from tests.fuzz.harness import require_plain
from tests.test_cli_anywhere import GIVEN, LACKING, verb_of

MISTAKE = 70  # exit code after an exception that no verb expects
USAGE = 2
VALUES = {
    "shell": "$(touch PWNED)`touch PWNED`;touch PWNED|'\"&>*\x1b[2J\nerror: b",
    "bytes": "a\udcff",
    "format": "{0.__class__}%s%n/../x",
    "long": "x" * 5_000,
    "dash": "-",
    "dashes": "--",
    "empty": "",
    "loop": "loop",  # a link to itself
}
LINES = {verb_of(line): line for lines in ([*LACKING], *GIVEN.values()) for line in reversed(lines)}


def lines_with(verb: str, value: str, known: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The command line of the verb for each of its arguments and options that take a value, with `value` there."""
    command, begin = leaf_verbs()[verb], len(verb.split())
    given = [word.format(**known) for word in LINES[verb].split()]
    options = [at for at in range(begin, len(given)) if given[at].startswith("--") or given[at - 1].startswith("--")]
    places = [given[at] for at in range(begin, len(given)) if at not in options]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    for parameter in command.params:
        if parameter in arguments:
            number = arguments.index(parameter)
            words = [*given[:begin], *(given[at] for at in options)]
            yield parameter.name, [*words, "--", *places[:number], value, *places[number + 1 :]]
        elif not parameter.is_flag:
            option, words = next(one for one in parameter.opts if one.startswith("--")), list(given)
            while option in words:
                at = words.index(option)
                del words[at : at + 2]
            yield option, [*words[:begin], f"{option}={value}", *words[begin:]]


def require_refused_or_done(done: Ended, told: Any) -> None:
    lines = [line for line in done.err.split("\n") if line.startswith("error: ")]
    assert done.code != MISTAKE, (told, done.err)
    assert "Traceback" not in done.err, told
    assert len(lines) == (done.code not in (0, USAGE)), (told, done)
    for line in [*lines, *done.out.split("\n"), *done.err.split("\n")]:
        require_plain(line)


@pytest.mark.slow
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("verb", sorted(leaf_verbs()))
def test_no_argument_ends_in_a_traceback_or_a_shell(
    verb: str,
    kind: str,
    materials: dict[str, str],
    empty_folder: Path,
    released: Released,
    shadowft: Shadowft,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    beside = sorted(os.listdir(empty_folder.parent))
    for number, (name, words) in enumerate(lines_with(verb, VALUES[kind], materials | {"name": released.name})):
        here = empty_folder / str(number)
        here.mkdir()
        monkeypatch.chdir(here)
        if kind == "loop":
            (here / "loop").symlink_to("loop")
        elif verb == "demo" and kind != "long":  # a folder that is in use, else the whole demo would run
            (here / VALUES[kind]).mkdir(parents=True, exist_ok=True)
            (here / VALUES[kind] / "in use").touch()
        require_refused_or_done(shadowft(*words), (name, words))
    assert not list(empty_folder.parent.rglob("PWNED*"))
    assert sorted(os.listdir(empty_folder.parent)) == beside
