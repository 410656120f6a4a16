"""A hook of mkdocs: a file outside docs/ that a page links to, such as infra/README.md, becomes a part of the site.

mkdocs knows only the files in docs/. Each file outside gets the path that it has in the repository, and links to it are
changed to fit; so the same links work in the repository and in the site, and a dead one fails the build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors are those of GitHub."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file that can be reached by links and is not in docs/."""
    seen = {f"docs/{page.src_uri}" for page in files}
    queue = [page for page in sorted(seen) if page.endswith(".md")]
    while queue:
        for path in map(str, _linked(queue.pop())):
            if path not in seen and (ROOT / path).is_file():
                seen.add(path)
                queue += [path] if path.endswith(".md") else []
                outside = {"abs_src_path": str(ROOT / path), "inclusion": InclusionLevel.NOT_IN_NAV}
                files.append(File.generated(config, path, **outside))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links between files in docs/ and files outside to those between their places in the site."""
    here = _in_repository(page.file)

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        return posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(link, markdown)


def _linked(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) for target in LINK.findall(text)]


def _in_repository(file: File) -> str:
    return file.src_uri if file.generated_by else f"docs/{file.src_uri}"
