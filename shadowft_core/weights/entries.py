"""Which entries of a model, adapter or delta folder may be read: regular files, and links that stay inside."""

import stat
from pathlib import Path

from shadowft_core.errors import CheckpointError, ShadowError
from shadowft_core.files import real_path

TEMPLATES = "additional_chat_templates"
"""the only folder inside a model folder whose files are read"""


def require_own_files(folder: Path, error: type[ShadowError] = CheckpointError) -> None:
    """Raise `error` unless every entry of a folder, and of its chat templates, is a file or folder of its own.

    A link must lead to a place inside the folder. In a snapshot of a Hugging Face cache, `snapshots/REVISION`, it may
    lead to a file in the `blobs` of the same model. Otherwise a downloaded folder could smuggle one of the user's own
    files into a graft. Pipes, sockets and devices are refused. Hidden entries are never read.
    """
    root = real_path(folder)
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    for place in (folder, folder / TEMPLATES):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            if not entry.name.startswith("."):
                _require_own(entry, root, blobs, error)


def leads_out(path: Path) -> bool:
    """Whether a file or folder is a link that leads out of its folder, or to nothing."""
    return path.is_symlink() and not real_path(path).is_relative_to(real_path(path.parent))


def _require_own(entry: Path, root: Path, blobs: Path | None, error: type[ShadowError]) -> None:
    try:
        found = real_path(entry) if entry.is_symlink() else entry
        mode = found.stat().st_mode
    except OSError:
        raise error(f"{entry}: not a regular file, but a broken link; replace it with a file") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise error(f"{entry}: not a regular file, but a pipe, socket or device; remove it")
    if found != entry and not found.is_relative_to(root) and found.parent != blobs:
        raise error(
            f"{entry}: a link that leads out of its folder, to {found}; expected a file in the folder: if you trust "
            "the link, copy the folder with `cp -rL`"
        )
