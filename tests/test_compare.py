"""`shadowft compare`: the terminal at several widths, the page with hostile text, and what is refused."""

import json
import re
import subprocess
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from shutil import which
from typing import Any

import pytest
from rich.console import Console

from shadowft_core.cli.comparison import show_ledger
from shadowft_core.forgetting import ledger
from shadowft_core.forgetting.page import render
from tests.fixtures.answers import scored, write_answers
from tests.fixtures.cli import Shadowft
from tests.fixtures.evaluation import World, score_instruct

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202edrowssap\u0000\u001b[31m [red]"
KL = {"answers": 2, "tokens": 9, "of_tokens": 9, "mean": 0.25, "max": 1.5, "tasks": {"t": {"mean": 0.25}}}


@pytest.fixture
def scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms in work/scores of the current folder, with hostile text wherever text comes from outside."""
    monkeypatch.chdir(tmp_path)
    ended: dict[str, Any] = {"finish": "stop", "tokens": 7, "parsed": True, "prompt": EVIL}
    before = {"t": scored(1, 1, 0, output=f"before {EVIL}", **ended), EVIL: scored(1, finish=None)}
    after = {"t": scored(0, 1, 1, output=f"after {EVIL}", **ended | {"tokens": 9}), EVIL: scored(0, finish=None)}
    write_answers(tmp_path / "work/scores/instruct/instruct", before, label=EVIL, generation={})
    write_answers(tmp_path / "work/scores/shadow/shadow_scaled", after, label=EVIL, generation={}, kl=KL)
    return tmp_path / "work/scores"


def test_arms_are_named_by_name_or_folder(scores: Path, shadowft: Shadowft) -> None:
    by_name = shadowft("compare", "instruct", "shadow_scaled")
    assert by_name == shadowft("compare", scores / "instruct/instruct", "work/scores/shadow/shadow_scaled")
    assert (by_name.code, by_name.err) == (0, "")
    assert re.search(r"^ *t +3 +0.6667 +0.6667 +1 +1 +\+0 +1 +0.25 *$", by_name.out, re.MULTILINE)
    assert re.search(r"^ *t +7 to 9 +\+2 +\+2 +0 %( +0 %){3} *$", by_name.out, re.MULTILINE)
    assert re.search(r"^ *t +3 +0 %( +100 %){5} *$", by_name.out, re.MULTILINE)
    assert "t, lost: 1 to 0" in by_name.out
    assert "0.25 nats per token, over 9 tokens of 2 answers" in by_name.out


def test_the_terminal_gets_no_control_characters(scores: Path, shadowft: Shadowft) -> None:
    out = shadowft("compare", "instruct", "shadow_scaled").out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
    assert "<U+202E>drowssap<U+0000><U+001B>[31m [red]" in out


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_tables_fit_the_terminal(scores: Path, width: int) -> None:
    found = ledger(scores / "instruct/instruct", scores / "shadow/shadow_scaled", task="t", examples=0)
    console = Console(width=width, record=True, file=StringIO())
    show_ledger(found, console)
    lines = [line for line in console.export_text().splitlines() if not line.startswith(("reference:", "arm:", "KL"))]
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert any(line.split() == ["t", "3", "0.6667", "0.6667", "1", "1", "+0", "1", "0.25"] for line in lines)
    else:
        assert "t: items 3, reference 0.6667, arm 0.6667, lost 1, won 1, net +0, p 1, KL 0.25" in " ".join(
            " ".join(lines).split()
        )


def test_examples_and_kinds(scores: Path, shadowft: Shadowft) -> None:
    none = shadowft("compare", "instruct", "shadow_scaled", "--examples", "0").out
    assert "item " not in none
    won = shadowft("compare", "instruct", "shadow_scaled", "--only", "won", "--task", "t").out
    assert "t, won: 0 to 1" in won
    assert "lost:" not in won
    assert shadowft("compare", "instruct", "shadow_scaled", "--only", "gained").code == 2


class Parsed(HTMLParser):
    """Tags with their attributes, and the text outside of script and style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        self.text += data * (self.inside not in ("script", "style"))


def test_hostile_text_stays_text_on_the_page(scores: Path, shadowft: Shadowft, tmp_path: Path) -> None:
    done = shadowft("compare", "instruct", "shadow_scaled", "--html", "page.html")
    assert done == (0, "page.html: 2 lost, 1 won of 4 items\n", "")
    source = (tmp_path / "page.html").read_text("utf-8")
    page = Parsed(source)
    names = [tag for tag, _ in page.tags]
    assert (names.count("script"), names.count("details")) == (1, 3)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form", "a"} & set(names)
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on") or key in ("src", "href")]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", source)
    shown = EVIL.replace("\u202e", "<U+202E>").replace("\x00", "<U+0000>").replace("\x1b", "<U+001B>")
    assert page.text.count(shown) >= 12  # in labels, prompts, outputs and the task's name
    assert "49" not in page.text
    assert "url(" not in source
    assert "http" not in source.replace("http-equiv", "")


def test_only_the_script_of_the_page_may_run(scores: Path) -> None:
    from base64 import b64encode
    from hashlib import sha256

    source = render(ledger(scores / "instruct/instruct", scores / "shadow/shadow_scaled"))
    [script] = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = b64encode(sha256(script.encode()).digest()).decode()
    [policy] = [attrs["content"] for _, attrs in Parsed(source).tags if "http-equiv" in attrs]
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


DOM = """
const flips = %s.map(([task, kind, textContent]) => ({dataset: {task, kind}, textContent, hidden: false}));
const byId = {}, listeners = [];
for (const id of ["words", "task", "kind", "shown", "filters"])
  byId[id] = {value: "", hidden: true, textContent: "", addEventListener: (_, act) => listeners.push(act)};
globalThis.document = {querySelectorAll: () => flips, getElementById: id => byId[id]};
{%s}
const tried = [];
for (const [words, task, kind] of %s) {
  [byId.words.value, byId.task.value, byId.kind.value] = [words, task, kind];
  listeners.forEach(act => act());
  tried.push([flips.map(flip => !flip.hidden), byId.shown.textContent]);
}
console.log(JSON.stringify([tried, byId.filters.hidden]));
"""


@pytest.mark.skipif(which("node") is None, reason="needs node to run the script of the page")
def test_the_filters_of_the_page() -> None:
    """The script itself, in node, over a stand-in for the document: no browser is needed to run it."""
    from shadowft_core.forgetting.page import SCRIPT

    flips = [["t", "lost", "Ein Haus"], ["t", "won", "ein Hund"], ["u", "won", "house"]]
    tries = [["", "", ""], ["EIN h", "", ""], ["ein haus", "t", "lost"], ["", "t", "won"], ["x", "", ""]]
    code = DOM % (json.dumps(flips), SCRIPT, json.dumps(tries))
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True)
    tried, hidden = json.loads(done.stdout)
    assert [shown for shown, _ in tried] == [
        [True, True, True], [True, True, False], [True, False, False], [False, True, False], [False, False, False],
    ]  # fmt: skip
    assert (tried[1][1], hidden) == ("2 of 3 shown", False)


def test_json_has_the_whole_ledger(scores: Path, shadowft: Shadowft) -> None:
    code, out, err = shadowft("compare", "instruct", "shadow_scaled", "--json")
    found = json.loads(out)
    assert (code, err, found["kind"]) == (0, "", "comparison")
    assert found["tasks"]["t"]["examples"]["won"][0]["prompt"] == EVIL
    assert found["arm"]["kl"] == KL


def test_an_unknown_arm_is_refused_with_the_known_ones(scores: Path, shadowft: Shadowft) -> None:
    shadowft("compare", "instruct", "shadow").refused(7, "shadow: neither a folder", "instruct, shadow_scaled")
    write_answers(scores / "other/instruct", {"t": scored(1)})
    shadowft("compare", "instruct", "shadow_scaled").refused(7, "2 arms have this name", "work/scores/instruct")


def test_without_scores_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadowft: Shadowft) -> None:
    monkeypatch.chdir(tmp_path)
    shadowft("compare", "a", "b").refused(7, "work/scores has no arms")


def test_a_refused_comparison_writes_no_page(scores: Path, shadowft: Shadowft, tmp_path: Path) -> None:
    fewer = write_answers(tmp_path / "fewer", {"t": scored(1)})
    shadowft("compare", "instruct", fewer, "--task", "t", "--html", "page.html").refused(7, "2 differ", "of 1 and 3")
    assert not (tmp_path / "page.html").exists()


def test_a_damaged_folder_is_refused_with_its_line(scores: Path, shadowft: Shadowft) -> None:
    file = scores / "instruct/instruct/items.jsonl"
    file.write_text(file.read_text().replace('"tokens": 7', '"tokens": -7', 1))
    shadowft("compare", "instruct", "shadow_scaled").refused(7, "items.jsonl:1: tokens: Input should be greater")


def test_a_comparison_of_real_answers(world: World, tmp_path: Path, shadowft: Shadowft) -> None:
    score_instruct(world, tmp_path / "out")
    folder = tmp_path / "out/instruct"
    code, out, _ = shadowft("compare", folder, folder)
    assert code == 0
    assert re.search(r"^ *say +13 +1 +1 +0 +0 +\+0 +1 ", out, re.MULTILINE)
