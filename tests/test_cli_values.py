"""Values that no verb takes: empty ones, and a folder in place of a file to write."""

from pathlib import Path

import pytest

from shadowft_core.errors import InputError
from shadowft_core.files.atomic import write_atomically
from tests.fixtures.cli import Shadowft
from tests.fixtures.models import Pair


@pytest.mark.parametrize("words", [["--out="], ["--out", ""]])
def test_an_empty_value_is_a_usage_error_and_not_the_current_folder(
    empty_folder: Path, shadowft: Shadowft, words: list[str]
) -> None:
    ended = shadowft("verdict", "--scores", empty_folder, "--recipe", empty_folder, *words)
    assert ended.code == 2
    assert "an empty value" in ended.err


@pytest.mark.parametrize("out", [".", "..", "/", "mine"])
@pytest.mark.parametrize("option", ["--out", "--metrics", "--junit", "--markdown"])
def test_a_folder_is_no_file_to_write(empty_folder: Path, shadowft: Shadowft, option: str, out: str) -> None:
    Path("mine").mkdir()
    beside = [] if option == "--out" else ["--out", "verdict.json"]
    ended = shadowft("verdict", "--scores", empty_folder, "--recipe", empty_folder, *beside, option, out)
    assert ended.code == 2
    assert "is a directory" in " ".join(ended.err.split())


@pytest.mark.parametrize("path", [".", "/"])
def test_a_file_without_a_name_is_not_written(path: str) -> None:
    with pytest.raises(InputError, match="a folder; name a file to write"):
        write_atomically(Path(path), b"")


@pytest.mark.parametrize("path", [".", "/"])
def test_data_without_a_name_cannot_have_versions(empty_folder: Path, shadowft: Shadowft, path: str) -> None:
    shadowft("data", "add", path).refused(3, "name a file or folder below this one")


def test_an_unknown_route_is_refused(empty_folder: Path, shadowft: Shadowft) -> None:
    words = ("--model", empty_folder, "--instruct", empty_folder, "--data", empty_folder, "--out", "tuned")
    shadowft("train", *words, "--route", "x").refused(3, "x")


@pytest.mark.parametrize("words", ["init loop", "demo loop", "extract --base {base} --tuned {instruct} --out loop"])
def test_a_link_to_itself_is_no_folder_to_write(
    empty_folder: Path, shadowft: Shadowft, tiny_llama_pair: Pair, words: str
) -> None:
    Path("loop").symlink_to("loop")
    known = {"base": tiny_llama_pair.base, "instruct": tiny_llama_pair.instruct}
    ended = shadowft(*(word.format(**known) for word in words.split()))
    assert ended.code in (1, 3)
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error:")]
    assert "loop" in line
    assert Path("loop").is_symlink()
