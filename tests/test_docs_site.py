"""`make docs`: the site builds without a dead link, and its pages load nothing from other servers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.generate import ROOT
from tests.fixtures.chromium import CHROMIUM, browser

pytest.importorskip("mkdocs", reason="mkdocs is not installed: `make venv` installs the extra `docs`")
pytestmark = pytest.mark.slow
LOADED = re.compile(  # what a browser fetches by itself; a link (<a href>) is not fetched
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b[^>]*?\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)|@import\s+[\"']((?:https?:)?//[^\"']+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "infra/docs/mkdocs.yml")]
    environment = os.environ | {
        "NO_MKDOCS_2_WARNING": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run([*command, "-d", str(folder)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page
    for page in ("infra/index.html", "benchmarks/index.html", "benchmarks/results/demo.html", "infra/slurm-train.sh"):
        assert (site / page).is_file(), page


def test_pages_load_nothing_from_other_servers(site: Path) -> None:
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".css", ".svg")]
    assert len(pages) > 30
    found = {(str(path.relative_to(site)), *hit) for path in pages for hit in LOADED.findall(path.read_text("utf-8"))}
    assert found == set()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (chromium, chromium-browser or google-chrome)")
def test_a_browser_asks_no_other_server(site: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        for name in ("index.html", "reference/cli.html", "training.html"):
            tab.open(site / name, 1280)
            asked = tab.requests()
            assert (site / name).as_uri() in asked
            assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_what_is_loaded_from_elsewhere_is_found() -> None:
    bad = (
        '<link rel="x" href="https://a/b.css"><script async src=//a/b.js></script><style>@import "http://a/c";</style>'
    )
    assert ["".join(hit) for hit in LOADED.findall(bad)] == ["https://a/b.css", "//a/b.js", "http://a/c"]
    assert LOADED.findall('<a href="https://a/b">') == []


def test_lists_and_tables_are_rendered(site: Path) -> None:
    """Markdown that GitHub reads as a list or a table, and the site as text."""
    text = {
        str(path.relative_to(site)): re.findall(
            r"<p>[^<]*(?:<(?!/p>)[^<]*)*?\n(?:- |\d+\. |\|)", path.read_text("utf-8")
        )
        for path in site.rglob("*.html")
    }
    assert {name: found for name, found in text.items() if found} == {}
