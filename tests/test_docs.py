"""The texts for readers: links, anchors, navigation, and the pages that are written from the code."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

import shadowft_core.limits
from shadowft_core.cli import app
from shadowft_core.params import Params
from tests.docs.generate import PAGES, ROOT
from tests.docs.settings import fields
from tests.fixtures.cli import leaf_verbs

TEXTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "infra/README.md", "benchmarks/README.md")
    ),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SITE = ROOT / "infra/docs/mkdocs.yml"
PAGE = re.compile(r"\bdocs/[\w/-]+\.md\b")
BLOCK = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)


def links(text: str) -> list[str]:
    """The targets of all links and pictures, without those of other sites."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]+`", "", BLOCK.sub("", text)))
    return [target for target in found if not re.match(r"https?:|mailto:", target)]


@cache
def anchors(page: Path) -> list[str]:
    """What GitHub and the site make of the headings of a page."""
    titles = re.findall(r"^#+ +(.+?) *#*$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return [re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    dead = []
    for target in links(page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` & [c](d.md)\n\n[here](#a-b--c) ![x](x.svg) `[y](y)`\n\n```\n# no heading\n[z](z)\n```\n")
    assert (links(page.read_text()), anchors(page)) == (["d.md", "#a-b--c", "x.svg"], ["a-b--c"])


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_heading_that_is_linked_stands_once(page: Path) -> None:
    """GitHub and the site number equal headings differently."""
    found = anchors(page)
    targets = {target.partition("#")[2] for text in TEXTS for target in links(text.read_text(encoding="utf-8"))}
    assert {anchor for anchor in found if found.count(anchor) > 1} & targets == set()


def commands(text: str) -> list[str]:
    """Every `shadowft ...` in a block or span of code, without what a shell takes for itself."""
    lines = re.findall(r"^ *(?:\$ )?(?:[A-Z_]+=\S+ )*(shadowft [a-z-].+)$", text, re.MULTILINE) + re.findall(
        r"`(shadowft [^`]+)`", text
    )
    parts = [part for line in lines for part in re.split(r" && | \| | > |; | # ", re.sub(r"\s+", " ", line))]
    return [part.replace("shadowft shadowft", "shadowft") for part in parts if part.startswith("shadowft ")]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_a_verb_and_options_that_exist(page: Path) -> None:
    verbs = leaf_verbs() | {"": get_command(app)}
    groups = {verb.split()[0] for verb in verbs if " " in verb}
    wrong = []
    for command in commands(page.read_text(encoding="utf-8")):
        words = re.sub(r"[\[\]]", "", command).split()[1:]
        verb = " ".join(words[: 0 if words[0].startswith("--") else 2 if words[0] in groups and len(words) > 1 else 1])
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] in ("VERB", "STAGE") or (len(words) == 1 and words[0] in groups):
            continue
        known = {
            "--help",
            *(one for p in getattr(verbs.get(verb), "params", ()) for one in (*p.opts, *p.secondary_opts)),
        }
        wrong += [command] * (verb not in verbs or not options <= known)
    assert wrong == []


def test_code_names_pages_that_exist() -> None:
    files = [
        path for folder in ("shadowft_core", "flows", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]
    named = {name for path in files for name in PAGE.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 10
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_no_message_or_help_text_names_a_page() -> None:
    """An installed package has no docs/. Comments and docstrings may name one, but a verb's docstring is its help."""
    found = []
    for path in (ROOT / "shadowft_core").rglob("*.py"):
        if not PAGE.search(path.read_text(encoding="utf-8")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        blocks = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
        docstrings = {id(block.value) for block in blocks if isinstance(block, ast.Expr)}
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings]
        found += [f"{path}: {node.value}" for node in strings if PAGE.search(str(node.value))]
    shown = [*(ROOT / "shadowft_core/workspace/template").glob("*.txt"), *(ROOT / "docs/reference").glob("*.md")]
    found += [str(path) for path in shown if PAGE.search(path.read_text(encoding="utf-8"))]
    assert found == []


def test_every_page_is_in_the_navigation() -> None:
    def pages(nav: Any) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [
            page for entry in nav for page in pages(next(iter(entry.values())) if isinstance(entry, dict) else entry)
        ]

    listed = pages(yaml.safe_load(SITE.read_text(encoding="utf-8"))["nav"])
    assert len(listed) == len(set(listed))
    inside = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert inside - set(listed) == set()
    assert {page for page in set(listed) - inside if not (ROOT / page).is_file()} == set()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_written_from_the_code_is_up_to_date(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name](), "run `python -m tests.docs.generate`"


def test_the_reference_has_every_verb_and_every_field() -> None:
    verbs, settings, limits = ((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
    assert [verb for verb in leaf_verbs() if f"\n## shadowft {verb}\n" not in verbs] == []
    rows = {name for name, section in re.findall(r"^\| `([\w.]+)` \|(.*)$", settings, re.MULTILINE)}
    assert {name.partition(".")[2] for name, _ in fields(Params)} <= rows
    named = re.findall(r"`([A-Z_]+)` \|$", limits, re.MULTILINE)
    assert sorted(named) == sorted(name for name in vars(shadowft_core.limits) if name.isupper() and name != "MIB")


def test_every_field_says_what_it_means() -> None:
    assert [name for name, field in fields(Params) if not field.description] == []


def test_the_readme_is_short() -> None:
    """It shows what the project is and where to read on; the pages have the rest."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 600


def test_the_picture_of_a_run_is_small_and_loads_nothing() -> None:
    picture = (ROOT / "docs/run.svg").read_text(encoding="utf-8")
    assert len(picture) < 60_000
    assert "verdict:" in picture.replace("&#160;", " ")
    assert re.findall(r"@import|@font-face|url\((?!#)|href=|<script", picture) == []
