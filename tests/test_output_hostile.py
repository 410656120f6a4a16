"""Names and texts of others on a terminal, in a log and in a message; values that should end in one line."""

import importlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from shadowft_core.errors import ParamsError, ShadowError, one_line, plain
from shadowft_core.limits import MESSAGE_CHARACTERS
from shadowft_core.pipeline.display import Display
from shadowft_core.pipeline.result import _markdown
from shadowft_core.pipeline.run import Run
from shadowft_core.pipeline.stage_process import run_command
from shadowft_core.terminal import PlainStream, guard_output, new_console
from tests.fixtures.cli import Shadowft
from tests.fuzz.harness import require_plain
from tests.fuzz.odd import TEXTS

ROOT = Path(__file__).parent.parent
APP = importlib.import_module("shadowft_core.cli.app")
EVIL = "x\x1b[2J\x1b]0;own\x07\r\nerror: fine\u202e\u2028\x9b1m"


@pytest.mark.parametrize("text", [*TEXTS, EVIL, EVIL * 10_000, "//a:" * 50_000], ids=lambda text: ascii(text)[:20])
def test_a_message_is_one_plain_line_of_bounded_length(text: str) -> None:
    for shown in (str(ShadowError(text)), str(ParamsError(f"a {text} b")), one_line(text)):
        require_plain(shown)
        assert len(shown) <= MESSAGE_CHARACTERS
        assert one_line(shown) == shown, "the same again"
    error = ParamsError(text)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    shown = one_line(f"begin {'x' * 99_999} http://u:hunter2@h end")
    assert shown.startswith("begin x")
    assert shown.endswith("x http://***@h end")
    assert "characters left out" in shown


def test_text_of_people_stays_as_it_is() -> None:
    for text in ("größer 中文 😀 a\\b 100 % [x]", "नमस्ते क्‍ष"):
        assert plain(text) == text


def test_escapes_are_those_of_json() -> None:
    assert json.loads(f'"{plain(EVIL)}"') == EVIL


def test_print_and_tables_have_no_power_over_the_terminal() -> None:
    raw = io.StringIO()
    print(EVIL, file=PlainStream(raw))
    PlainStream(raw).writelines([EVIL])
    console = new_console(file=PlainStream(raw), force_terminal=True, width=200)
    console.print(EVIL)
    table = Table(EVIL)
    table.add_row(EVIL, style="bold")
    console.print(table)
    shown = raw.getvalue()
    assert "\x1b[1m" in shown, "rich's own sequences"
    for bad in ("\x1b[2J", "\x1b]", "\x07", "\r", "\u202e", "\u2028", "\x9b"):
        assert bad not in shown


def test_text_is_no_markup_and_streams_of_others_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.StringIO()
    new_console(file=raw, width=200).print("[red]x[/red] :smile: [link=file:///etc]y[/link]")
    assert raw.getvalue() == "[red]x[/red] :smile: [link=file:///etc]y[/link]\n"
    monkeypatch.setattr("sys.stdout", raw)
    monkeypatch.setattr("sys.stderr", None)  # when the shell has closed it
    guard_output()
    assert sys.stdout is raw


def test_a_line_of_a_stage_reaches_display_and_log_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    code = f"print({EVIL!a}); raise SystemExit(3)"
    assert "\x1b" not in str(run_command([sys.executable, "-c", code], seen.append))
    for line in seen:
        require_plain(line)
    display = Display({EVIL: EVIL}, frozenset(), clock=type("Clock", (), {"remaining": lambda *_: 0.0})())  # type: ignore[arg-type]
    display.start(EVIL)
    display.line(EVIL)
    display.finish("Failed")
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3
    require_plain(out.replace("\n", ""))


def test_the_artifact_of_a_run_has_no_elements_of_a_page() -> None:
    assert _markdown("<img src=http://h> [x](http://h)\n# y") == "&lt;img src=http://h> [x]\\(http://h)\\n# y"


OPTIONS = {
    "train --model m --instruct i --data d --out o --seed {number}": ["1" + "0" * 30, "-1", "nan", "1e3"],
    "graft --instruct i --delta d --out o --scale {number}": ["nan", "inf", "1e400", "-1e400"],
    "graft --instruct i --delta d --out o --scale 1 --merge dare --seed {number} --density 0.5": ["9" * 5_000, "-5"],
    "graft --instruct i --delta d --out o --merge ties --scale 1 --density {number}": ["nan", "inf", "-1", "1e400"],
    "power --instruct i --data d --differ {number}": ["nan", "inf", "-1", "1e400"],
    "power --instruct i --data d --look {number}": ["0", "-1", "9" * 5_000],
    "store prune --grace-days {number} --store s": ["nan", "inf", "-1", "1e300"],
    "plan --preset qwen3-8b-lora --device H100 --devices {number}": ["0", "9" * 5_000, "x"],
    "data show d --sample {number}": ["-1", "9" * 5_000],
    "extract --base b --tuned t --out o --lossy {number}": ["nan", "inf", "-1", "1e400"],
    "compare a b --examples {number}": ["-1", "9" * 5_000],
    "export models:/a/1 --out o --for vllm --max-lora-rank {number}": ["0", "-1", "9" * 5_000],
}


@pytest.mark.parametrize("line", OPTIONS)
def test_a_number_beyond_use_ends_in_one_line(
    line: str, shadowft: Shadowft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in OPTIONS[line]:
        done = shadowft(*line.format(number=number).split(), "--json")
        assert done.code not in (0, APP.MISTAKE), (number, done)
        assert "Traceback" not in done.err
        require_plain(json.loads(done.err.splitlines()[-1])["message"])
    assert list(tmp_path.iterdir()) == []


def test_a_usage_error_shows_no_control_characters(shadowft: Shadowft) -> None:
    done = shadowft("diff", "--no\x1b[2J\u202e")
    assert done.code == 2
    assert "[2J" in done.err
    assert not set(EVIL[1:2] + "\u202e") & set(done.err)


def test_an_exception_that_no_verb_expects_is_one_line(
    shadowft: Shadowft, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(EVIL)

    monkeypatch.setattr(APP, "app", fail)
    done = shadowft("diff", tmp_path, tmp_path)
    done.refused(70, "ZeroDivisionError in ", "this is a mistake in shadowft", "SHADOWFT_TRACEBACK=1")
    require_plain(done.err.removesuffix("\n"))
    monkeypatch.setenv("SHADOWFT_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["shadowft", "diff"])
    with pytest.raises(ZeroDivisionError):
        APP.main()


HOSTILE = ["a\0b", "a\nb", "a\x1b[2J", "\udce9", "$(touch ran)\x07"]


@pytest.mark.parametrize("field", ["workspace", "store_uri", "store_endpoint", "model_name"])
@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_a_flow_refuses_parameters_before_anything_starts(field: str, value: str, tmp_path: Path) -> None:
    given = {"workspace": str(tmp_path), "store_uri": None, "store_endpoint": None, "model_name": None, field: value}
    with pytest.raises(ParamsError, match=f"^{field} ") as refused, Run(**given):  # type: ignore[arg-type]
        raise AssertionError("the block ran")
    require_plain(str(refused.value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name", "a\nb"], "--name 'a\\nb'"),
        (["--name", "../x"], "expected the name of a model"),
        (["--name", "-x"], "expected the name of a model"),
        (["--store", "s3://b/\x1b[2J"], "--store 's3://b/\\x1b[2J'"),
        (["--endpoint", "http://h\n"], "--endpoint 'http://h\\n'"),
    ],
)
def test_run_refuses_its_options_before_a_server_starts(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/retrain.py").write_text("raise SystemExit('loaded')\n")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    command = [sys.executable, "-m", "shadowft_core.cli", "run", str(tmp_path), *words]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    (line,) = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout, said in line) == (3, b"", True), line
    require_plain(line)
    assert not (tmp_path / "var").exists()
