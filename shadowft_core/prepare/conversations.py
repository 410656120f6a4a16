"""Rows of data files as conversations with their images."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from shadowft_core.files.jsontext import RawRow
from shadowft_core.files.rows import read_rows
from shadowft_core.prepare.files import data_files
from shadowft_core.prepare.images import Gallery
from shadowft_core.prepare.shapes import Conversation, conversation_of
from shadowft_core.prepare.turns import BadRow, printable


def read_conversations(place: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, Conversation | BadRow]]:
    """Yield `file:row` and the conversation of every row of a file or folder, or the reason why there is none.

    Raises DataError when a file cannot be read.
    """
    images = Gallery(None)
    for path in data_files(place)[0]:
        for raw in read_rows(path):
            source = f"{file_name(path, place)}:{raw.number}"
            try:
                yield source, conversation_in(raw, path.parent, columns, images)
            except BadRow as reason:
                yield source, reason


def conversation_in(raw: RawRow, folder: Path, columns: Mapping[str, str], images: Gallery) -> Conversation:
    """The conversation of one row. Paths of images are relative to `folder`. Raises BadRow."""
    if raw.problem:
        raise BadRow(raw.problem)
    conversation = conversation_of(raw.value, columns)
    if conversation.sources:
        conversation = conversation._replace(images=images.keep(conversation.sources, folder))
    return conversation


def file_name(path: Path, place: Path) -> str:
    """The name of a data file of `place` in reports: relative to it, in printable characters."""
    name = path.name if path == place else path.relative_to(place).as_posix()
    return printable(name, len(name))
