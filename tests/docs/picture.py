"""Runs a command in a terminal of its own and draws what stands on the screen when it ends.

python -m tests.docs.picture docs/run.svg shadowft demo    # in an empty folder, the picture's path absolute

Colours and wording are those of the run. The picture names no font that a browser would have to load.
"""

import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

WIDTH = 120  # columns
ESCAPE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
FRAME = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{font-family: monospace; font-size: {char_height}px; line-height: {line_height}px}}
.{unique_id}-title {{font-size: 18px; font-weight: bold; font-family: sans-serif}}
{styles}</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath></defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def main() -> None:
    picture, *command = sys.argv[1:]
    ended, printed = run(command)
    Path(picture).write_text(drawn(screen(printed), " ".join(command)), encoding="utf-8")
    sys.exit(ended)


def run(command: list[str]) -> tuple[int, str]:
    """The exit code of a command, and all that it wrote to its terminal."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, WIDTH, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
            os.write(sys.stdout.fileno(), part)
    except OSError:  # the last process has closed the terminal
        pass
    return process.wait(), b"".join(parts).decode()


def screen(printed: str) -> list[str]:
    """The lines that are left, with their colours: a live display moves the cursor up and clears lines."""
    lines, row = [""], 0
    for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-ln-z]|\r\n|\n|\r)", printed):
        found = ESCAPE.fullmatch(piece)
        if piece in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row == len(lines))
        elif found and found[2] == "A":
            row -= int(found[1] or 1)
        elif piece == "\r" or (found and found[2] == "K"):
            lines[row] = "" if found else lines[row]
        elif found is None:
            lines[row] += piece
    return lines


def drawn(lines: list[str], title: str) -> str:
    """The lines as a picture (SVG)."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi("\n".join(lines)))
    picture = console.export_svg(title=title, theme=SVG_EXPORT_THEME, code_format=FRAME, unique_id="run")
    return re.sub(r'<text[^>]*>\n</text>| clip-path="url\(#run-line-\d+\)"', "", picture)


if __name__ == "__main__":
    main()
