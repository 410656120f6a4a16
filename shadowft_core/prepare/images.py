"""Images of rows: finds their places in the messages, checks their files and copies each once, named by its digest."""

import base64
import binascii
import hashlib
import io
import os
import re
import stat
import urllib.parse
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path, PureWindowsPath
from typing import Any

from shadowft_core.limits import IMAGE_BYTES, IMAGE_PIXELS
from shadowft_core.prepare.turns import IMAGE, BadRow

FIELDS = ("image", "images")
MARK = "<image>"  # marks the place of an image in a text
FORMATS = {
    **{"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"},
    **{"GIF": "gif", "BMP": "bmp", "TIFF": "tif"},
}
"""suffix of a copied file by Pillow's name of its format; MPO is a JPEG followed by more frames"""

Source = tuple[str, Any]
"""the name of a field, and the image in it: a path, a data: URL, bytes, or an object with one of them"""


def placed(messages: Sequence[dict[str, Any]], fields: Mapping[str, Any]) -> list[Source]:
    """The images of a row, in the order in which its messages show them.

    `fields` are the fields of the row. Removes the marks from the messages. A message that shows images gets
    `image_places`: for each image the number of characters of the content before it. If a row has no marks, its images
    stand before its first user turn. Raises BadRow if the numbers of images and marks differ.
    """
    given = [(name, one) for name in FIELDS if name in fields for one in _listed(fields[name])]
    shown = [_shown(message, bool(given)) for message in messages]
    if given and not any(shown):
        first = next((one for one in messages if one["role"] == "user"), None)
        if first is None:
            raise BadRow("no user turn")
        first["image_places"] = [0] * len(given)
        return given
    marks = [image for images in shown for image in images if not isinstance(image, tuple)]
    if len(marks) != len(given):
        raise _mismatch(given[0][0] if given else "content", len(given), len(marks))
    if any(index not in (None, number) for number, index in enumerate(marks)):
        raise BadRow("field 'content': the images are not in the order of their 'index'")
    rest = iter(given)
    return [image if isinstance(image, tuple) else next(rest) for images in shown for image in images]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _mismatch(field: str, images: int, marks: int) -> BadRow:
    return BadRow(f"field {field!r}: {images} images, but {marks} marks for images")


def _shown(message: dict[str, Any], given: bool) -> list[Source | int | None]:
    """The images of a message: a source, or for an image in a field of the row its index or None. Removes the marks."""
    parts, fields = message.pop("images", ((), {}))
    own = [(name, one) for name, value in fields.items() for one in _listed(value)]
    if not (parts or own or given):
        return []
    pieces = message["content"].split(IMAGE if parts else MARK)
    images: list[Source | int | None] = [_source(part) for part in parts] or [None] * (len(pieces) - 1)
    if len(images) != len(pieces) - 1:
        raise BadRow(f"U+{ord(IMAGE):X} in 'content'")
    if own:
        if not images:
            pieces, images = [""] * len(own) + pieces, [None] * len(own)
        if sum(not isinstance(image, tuple) for image in images) != len(own):
            raise _mismatch(own[0][0], len(own), len(images))
        rest = iter(own)
        images = [image if isinstance(image, tuple) else next(rest) for image in images]
    if images:
        if message["role"] != "user":
            raise BadRow(f"an image in a turn of the role {message['role']!r}")
        message["content"] = "".join(pieces)
        message["image_places"] = list(accumulate(map(len, pieces[:-1])))
    return images


def _source(part: Mapping[str, Any]) -> Source | int | None:
    """The source in an image part. Without one, the part's index among the images of the row, or None."""
    name = next((name for name in ("image_url", "image", "url", "path", "base64") if part.get(name)), None)
    if name == "base64":
        return name, f"data:;base64,{part[name]}"
    return part.get("index") if name is None else (name, part[name])


class Gallery:
    """Copies images into a folder, each named SHA256.SUFFIX by its bytes. `files` has the paths that were read.

    Without a folder it checks and names images, but copies none.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.files: set[Path] = set()

    def keep(self, sources: Iterable[Source], folder: Path) -> list[str]:
        """Copy the images of a row and return their names. Paths are relative to `folder`, which has the data file.

        Raises BadRow for a URL, a path that leaves the folder, and a file that is no image, too large or has more than
        one frame.
        """
        names = []
        for field, value in sources:
            try:
                names.append(self._keep(value, folder))
            except BadRow as reason:
                raise BadRow(f"field {field!r}: {reason}", field) from None
        return names

    def keep_only(self, splits: Iterable[Path]) -> int:
        """Delete the images that no row of these parquet files names, and return the number of the others."""
        import pyarrow.parquet as pq

        if self._folder is None or not self._folder.exists():
            return 0
        used = set()
        for split in splits:
            with pq.ParquetFile(split) as file:
                for batch in file.iter_batches(columns=["images"]):
                    used.update(batch.column(0).flatten().to_pylist())
        for path in self._folder.iterdir():
            if path.name not in used:
                path.unlink()
        if not used:
            self._folder.rmdir()
        return len(used)

    def _keep(self, value: Any, folder: Path) -> str:
        data = self._bytes(value, folder)
        if not data:
            raise BadRow("the image file is empty")
        digest = hashlib.sha256(data).hexdigest()
        if self._folder is None:
            return f"{digest}.{_suffix(data)}"
        names = [f"{digest}.{suffix}" for suffix in FORMATS.values()]
        name = next((name for name in names if (self._folder / name).exists()), None)
        if name is None:
            name = f"{digest}.{_suffix(data)}"
            self._folder.mkdir(exist_ok=True)
            (self._folder / name).write_bytes(data)
        return name

    def _bytes(self, value: Any, folder: Path) -> bytes:
        while isinstance(value, dict):  # {"url": ...}, or {"bytes": ..., "path": ...} of the datasets library
            value = next((value[name] for name in ("bytes", "url", "path") if value.get(name)), None)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise BadRow("expected a path, a data: URL or bytes")
        if value[:5].casefold() == "data:":
            return _decoded(value)
        path = _path(value, folder)
        try:
            about = path.stat()
            if not stat.S_ISREG(about.st_mode):
                raise BadRow("the path is not a file")
            if about.st_size > IMAGE_BYTES:
                raise BadRow(f"the image file is larger than {IMAGE_BYTES >> 20} MiB")
            data = path.read_bytes()
        except OSError as error:
            raise BadRow(f"the image file is not readable: {error.strerror}") from None
        self.files.add(path)
        return data


def _path(value: str, folder: Path) -> Path:
    """The absolute path of a file below `folder`. Raises BadRow for any other path."""
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]+:", value):
        raise BadRow("a URL: nothing is downloaded, so give a file")
    if "\0" in value:
        raise BadRow("NUL in the path")
    if value.startswith("/") or PureWindowsPath(value).drive or value.startswith("\\"):
        raise BadRow("an absolute path: give one relative to the data file")
    if os.path.normpath(value).split("/")[0] == "..":
        raise BadRow("the path leaves the folder of the data file")
    try:
        path, root = (folder / value).resolve(strict=True), folder.resolve()
    except (FileNotFoundError, NotADirectoryError):
        raise BadRow("no such image file") from None
    except (OSError, RuntimeError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise BadRow(f"the path is not readable: {text}") from None
    if not path.is_relative_to(root):
        raise BadRow("the path leaves the folder of the data file by a symbolic link")
    return path


def _decoded(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.casefold().endswith(";base64"):
        raise BadRow("a data: URL that is not base64")
    try:
        return base64.b64decode("".join(urllib.parse.unquote(body).split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadRow("a data: URL that is not valid base64") from None


def _suffix(data: bytes) -> str:
    """The suffix of an image, which Pillow decodes in full. Raises BadRow if it cannot."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name != "MPO"]) as image:
                if image.width * image.height > IMAGE_PIXELS:
                    raise BadRow(f"the image has more than {IMAGE_PIXELS >> 20} Mi pixels")
                if getattr(image, "is_animated", False) and image.format != "MPO":
                    raise BadRow("the image has more than one frame")
                image.load()
                return FORMATS[str(image.format)]
    except BadRow:
        raise
    except Image.DecompressionBombError:
        raise BadRow(f"the image has more than {IMAGE_PIXELS >> 20} Mi pixels") from None
    except Exception:  # a damaged file makes Pillow raise almost anything
        raise BadRow(f"not readable as an image ({', '.join(dict.fromkeys(FORMATS.values()))})") from None
