"""Writes the pages of docs/reference/ from the code.

python -m tests.docs.generate    # after a change of an option, a verb or a field of params.yaml
"""

from pathlib import Path

from tests.docs import commandline, settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"docs/reference/cli.md": commandline.page, "docs/reference/params.md": settings.page}


def main() -> None:
    for name, page in PAGES.items():
        (ROOT / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
