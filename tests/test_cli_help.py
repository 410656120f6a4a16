"""What --help and --version print: an example for every verb, one help text for every shared option."""

import importlib.metadata
import platform
import subprocess
import sys
from collections import defaultdict

import pytest

from shadowft_core.kernels import bf16
from tests.fixtures.cli import Shadowft, leaf_verbs

# typer itself imports pydantic
HEAVY = {"torch", "numpy", "mlflow", "boto3", "transformers", "prefect", "scipy", "yaml"}


@pytest.mark.parametrize("verb", list(leaf_verbs()))
def test_every_verb_has_a_sentence_and_an_example(verb: str, shadowft: Shadowft) -> None:
    code, out, _ = shadowft(*verb.split(), "--help")
    assert code == 0
    text = " ".join(out.replace("│", "").split())
    assert f": shadowft {verb}" in text.partition("Options")[0]
    sentence = leaf_verbs()[verb].help.split("\n\n")[0]
    assert sentence.endswith(".")
    assert len(sentence) < 120


def test_a_shared_option_has_one_help_text() -> None:
    texts = defaultdict(set)
    for command in leaf_verbs().values():
        for option in command.params:
            for spelling in getattr(option, "opts", ()):
                texts[spelling].add(str(option.help).partition(":")[0] if spelling == "--out" else option.help)
    shared = ("--store", "--endpoint", "--params", "--json", "--dry-run", "--reason", "--ignore", "--onto-base")
    assert [name for name in (*shared, "--unrelated", "--pending", "name") if len(texts[name]) != 1] == []
    assert texts["--out"] == {
        "folder to write, replaced if it exists",
        "file to write, replaced if it exists",
        "folder of the fetched benchmarks; default",
    }


def test_verbs_are_shown_in_groups(shadowft: Shadowft) -> None:
    out = shadowft("--help").out
    assert out.index("Stages ─") < out.index("Store ─") < out.index("Registry ─") < out.index("Inspect ─")


@pytest.mark.parametrize("words", [["--help"], ["graft", "--help"], ["store", "--help"]])
def test_help_imports_no_other_room(words: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "rooms = lambda: {name.split('.')[1] for name in sys.modules if name.startswith('shadowft_core.')}\n"
        f"atexit.register(lambda: print(sorted({HEAVY} & set(sys.modules)), sorted(rooms()), file=sys.stderr))\n"
        f"sys.argv = ['shadowft', *{words}]\n"
        "from shadowft_core.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[] ['cli', 'environment', 'errors', 'limits', 'terminal']"


def test_version_names_python_libraries_and_arithmetic_and_imports_no_library() -> None:
    code = (
        "import sys, atexit; from shadowft_core.cli import main\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'peft', 'trl'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        "sys.argv = ['shadowft', '--version', '--verbose']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, imported = done.stdout.splitlines()
    assert imported == "[]"
    assert lines[0] == f"shadowft {importlib.metadata.version('shadowft')}"
    assert lines[1].startswith(f"Python {platform.python_version()} on ")
    assert f"torch {importlib.metadata.version('torch')}" in lines
    assert lines[-1].startswith("arithmetic: ")


def test_version_says_which_arithmetic_is_used_and_why(shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shadowft("--version") == (0, f"shadowft {importlib.metadata.version('shadowft')}\n", "")
    monkeypatch.setattr(bf16, "library", object())
    assert shadowft("--version", "--verbose").out.splitlines()[-1] == "arithmetic: compiled"
    monkeypatch.setattr(bf16, "library", None)
    monkeypatch.setattr(bf16, "why_numpy", "not built")
    last = shadowft("--version", "--verbose").out.splitlines()[-1]
    assert last == "arithmetic: numpy, the same bits but slower (not built)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--verbose"], "`--verbose` goes with `--version`"),
        (["--verbose", "pair"], "`--verbose` goes with `--version`"),
        (["--"], "no verb; `shadowft --help` lists them"),
        (["version"], "`version` is no longer accepted; use `--version --verbose`"),
    ],
)
def test_words_without_a_verb_are_a_usage_error(words: list[str], message: str, shadowft: Shadowft) -> None:
    code, out, err = shadowft(*words)
    assert (code, out) == (2, "")
    assert message in err
