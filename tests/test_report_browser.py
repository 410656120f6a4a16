"""The page of the report, and that of compare, in a real browser: quiet, offline, readable on a phone and on paper."""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowft_core.forgetting import ledger
from shadowft_core.forgetting.page import render
from tests.fixtures.chromium import CHROMIUM, Browser, browser
from tests.fixtures.report import page, write_work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome) to be installed"
    ),
]
WIDTHS = (390, 1280)
NARROW = """[...document.querySelectorAll(".scroll")].map(one =>
  [one.scrollWidth > one.clientWidth, getComputedStyle(one, "::before").display !== "none"])"""
MARKS = """[...document.querySelectorAll("figure svg")].map(svg => [...svg.querySelectorAll("[id*='-mark-']")]
  .flatMap(mark => [mark, ...mark.querySelectorAll("path, use")]).map(one => one.getBoundingClientRect())
  .filter(box => box.width + box.height > 1).length)"""
HEIGHT = """Math.min(...[...document.querySelectorAll("figure svg text")].map(text =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a || 99))"""
SEEN = """[...document.querySelectorAll(".arms thead th")]
  .filter(cell => cell.getBoundingClientRect().right <= innerWidth).map(cell => cell.textContent)"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = write_work(tmp_path_factory.mktemp("report"))
    page(work)
    return work / "report.html"


@pytest.fixture(scope="module")
def compared(report: Path) -> Path:
    scores = report.parent / "scores"
    found = ledger(scores / "instruct/instruct", scores / "shadow/shadow_scaled", examples=20)
    path = report.parent / "compare.html"
    path.write_text(render(found), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "compared"])
def test_the_page_is_quiet_asks_for_nothing_and_fits(
    tab: Browser, name: str, width: int, request: pytest.FixtureRequest
) -> None:
    file = request.getfixturevalue(name)
    tab.open(file, width)
    assert tab.complaints() == []
    assert tab.requests() == [file.as_uri()]
    assert tab.run("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_has_marks(tab: Browser, report: Path, width: int) -> None:
    tab.open(report, width)
    counts = tab.run(MARKS)
    assert len(counts) == 6
    assert min(counts) >= 4
    assert tab.run(HEIGHT) >= 8  # CSS pixels


@pytest.mark.parametrize("name", ["report", "compared"])
def test_a_table_that_scrolls_says_so(tab: Browser, name: str, request: pytest.FixtureRequest) -> None:
    tab.open(request.getfixturevalue(name), 390)
    tables = tab.run(NARROW)
    assert any(scrolls for scrolls, _ in tables)
    assert all(hint for scrolls, hint in tables if scrolls)


def test_guards_are_in_sight_on_a_phone(tab: Browser, report: Path) -> None:
    tab.open(report, 390)
    assert {"arm", "scale", "domain", "guards"} <= set(tab.run(SEEN))


def test_the_first_printed_page_has_the_decision_and_its_cause(tab: Browser, report: Path) -> None:
    tab.open(report, 1280)
    first = text_of(tab.pdf(pageRanges="1"))
    for words in ("Promote", "may become champion", "Why", "What ships and what it replaces"):
        assert words in first
    assert "Lineage" not in first


def test_a_listener_sees_an_error_and_a_request(tab: Browser, tmp_path: Path) -> None:
    """The checks above could fail."""
    bad = tmp_path / "bad.html"
    bad.write_text("<div style='width: 2000px'>x</div><img src='gone.png'><script>console.error('no')</script>")
    tab.open(bad, 390)
    assert len(tab.complaints()) >= 1
    assert len(tab.requests()) == 2
    assert tab.run("document.documentElement.scrollWidth") > 390


def text_of(pdf: bytes) -> str:
    """The text of a printed page. Each font of Chromium's PDFs has a table from its glyphs to Unicode."""
    objects = {int(number): body for number, body in re.findall(rb"(\d+) 0 obj\s*(.*?)endobj", pdf, re.DOTALL)}
    streams = {number: _stream(body) for number, body in objects.items()}
    tables = {}
    for number, body in objects.items():
        if to := re.search(rb"/ToUnicode (\d+) 0 R", body):
            tables[number] = _unicode(streams[int(to[1])])
    fonts = {
        name.decode(): tables[int(number)]
        for body in objects.values()
        for name, number in re.findall(rb"/(F\d+) (\d+) 0 R", body)
        if int(number) in tables
    }
    text, table = "", dict[int, str]()
    for stream in streams.values():
        for font, codes in re.findall(r"/(F\d+) [\d.]+ Tf|<([0-9A-Fa-f]+)>", stream):
            table = fonts.get(font, table)
            text += "".join(table.get(int(codes[at : at + 4], 16), "") for at in range(0, len(codes), 4))
    return text


def _stream(body: bytes) -> str:
    found = re.search(rb"stream\r?\n(.*?)\r?\nendstream", body, re.DOTALL)
    if not found:
        return ""
    data = zlib.decompressobj().decompress(found[1]) if b"/FlateDecode" in body else found[1]
    return data.decode("latin-1")


def _unicode(cmap: str) -> dict[int, str]:
    table = {}
    for block in re.findall(r"beginbfchar(.*?)endbfchar", cmap, re.DOTALL):
        for code, to in re.findall(r"<(\w+)>\s*<(\w+)>", block):
            table[int(code, 16)] = bytes.fromhex(to).decode("utf-16-be")
    for block in re.findall(r"beginbfrange(.*?)endbfrange", cmap, re.DOTALL):
        for low, high, to in re.findall(r"<(\w+)>\s*<(\w+)>\s*<(\w+)>", block):
            for at in range(int(low, 16), int(high, 16) + 1):
                table[at] = chr(int(to, 16) + at - int(low, 16))
    return table
