"""Program output in which names and texts from elsewhere cannot control the terminal.

`print` escapes control characters, except line feeds and tabs; `errors.say` prints one line. Consoles of rich write to
the underlying stream, which their own control sequences must reach; `new_console` makes one that escapes every text.
"""

import io
import sys
from typing import TYPE_CHECKING, Any, TextIO

from shadowft_core.errors import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

KEPT = "\n\t"


class PlainStream:
    """A text stream that escapes control characters."""

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream  # under this name, a console of rich finds the underlying stream

    def write(self, text: str) -> int:
        """Write a text; carriage returns at its beginning are kept, since libraries' progress bars begin with one."""
        rest = text.lstrip("\r")
        return self.rich_proxied_file.write(text[: len(text) - len(rest)] + plain(rest, KEPT))

    def writelines(self, lines: Any) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard_output(encoding: str | None = None) -> None:
    """Make stdout and stderr accept every character, and keep control characters from the terminal.

    A file name may hold bytes that are not text, and a terminal or pipe may use an encoding other than UTF-8: what it
    cannot show is escaped. With `encoding`, both streams use that one.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):  # None when the shell has closed it
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
            setattr(sys, name, PlainStream(stream))


def new_console(**settings: Any) -> "Console":
    """A console of rich that escapes control characters in every text it prints, and takes no text as markup."""
    from rich.console import Console  # takes a tenth of a second

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> "Text":
            return super().render_str(plain(text, KEPT), **options)

    return Plain(**{"highlight": False, "markup": False, "emoji": False, **settings})
