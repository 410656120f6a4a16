"""The wheel that a registered version carries, so that no package index is asked for this project.

It has the installed package without the compiled library, so it serves every platform, and it requires only what the
loader imports. Its version ends in a digest of its content (`0.1.0+loader.0123456789ab`): MLflow names an environment
by the requirements, and would else use one with other code.
"""

import base64
import hashlib
import zipfile
from collections.abc import Collection
from importlib.metadata import metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PACKAGE = Path(__file__).parents[1]
_SUFFIXES = (".py", ".pyi", ".typed", ".json", ".jsonl", ".yaml", ".html", ".css", ".txt")


def write_wheel(folder: Path, packages: Collection[str]) -> Path:
    """Write the wheel and return its path. It requires those of `packages` that this project names, in its ranges.

    The same installed files give the same content, in the same order and with the same times.
    """
    files = {
        f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}": path.read_bytes()
        for path in sorted(_PACKAGE.rglob("*"))
        if path.suffix in _SUFFIXES and not path.name.startswith(".") and path.is_file()
    }
    about, needed = metadata("shadowft"), requires("shadowft") or ()
    named = [one for one in needed if canonicalize_name(Requirement(one).name) in packages]
    described = f"License: {about['License-Expression']}\nRequires-Python: {about['Requires-Python']}\n"
    described += "".join(f"Requires-Dist: {one}\n" for one in sorted(named))
    content = hashlib.sha256(described.encode())
    for name, data in files.items():
        content.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    version = f"{about['Version']}+loader.{content.hexdigest()[:12]}"
    place = f"shadowft-{version}.dist-info"
    files[f"{place}/METADATA"] = f"Metadata-Version: 2.1\nName: shadowft\nVersion: {version}\n{described}".encode()
    files[f"{place}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: shadowft\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{place}/RECORD"] = _record(files, f"{place}/RECORD").encode()
    wheel = folder / f"shadowft-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def _record(files: dict[str, bytes], itself: str) -> str:
    lines = (
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for name, data in files.items()
    )
    return f"{''.join(lines)}{itself},,\n"
