"""Writes the pages of docs/reference/ and docs/limits.md from the code.

python -m tests.docs.generate    # after a change of an option, a verb, a field of params.yaml or a limit
"""

from pathlib import Path

from tests.docs import bounds, commandline, settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "docs/reference/cli.md": commandline.page,
    "docs/reference/params.md": settings.page,
    "docs/limits.md": bounds.page,
}


def main() -> None:
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
