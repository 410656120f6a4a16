"""Written files survive a power cut: everything is synced before the rename that publishes it."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.files import new_folder, write_atomically, write_json_atomically
from shadowft_core.weights import DTYPES, build_header, open_safetensors, write_safetensors


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Syncs and renames in order, each with the name of the file or folder; for a rename, the new name."""
    seen: list[tuple[str, str]] = []
    sync = os.fsync

    def synced(descriptor: int) -> None:
        seen.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        sync(descriptor)

    def renamed(act: Callable[..., None]) -> Callable[..., None]:
        def both(source: Path, target: Path) -> None:
            act(source, target)
            seen.append(("rename", Path(target).name))

        return both

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renamed(getattr(os, name)))
    return seen


@pytest.mark.parametrize("write", [lambda p: write_atomically(p, b"1"), lambda p: write_json_atomically(p, 1)])
@pytest.mark.parametrize("before", [None, b"0"], ids=["new", "again"])
def test_a_file_is_synced_then_renamed_then_its_folder_is_synced(
    tmp_path: Path, calls: list[tuple[str, str]], write: Callable[[Path], None], before: bytes | None
) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    if before is not None:
        path.write_bytes(before)
    write(path)
    assert path.read_bytes() == b"1"
    assert calls == [("sync", f".file.{os.getpid()}.partial"), ("rename", "file"), ("sync", "folder")]


def test_every_file_and_folder_is_synced_before_the_folder_is_published(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    for again in (False, True):
        calls.clear()
        with new_folder(tmp_path / "top" / "out") as folder:
            (folder / "deep").mkdir()
            for name in ("a", "deep/b", "deep/c"):
                (folder / name).write_bytes(b"1")
        published = calls.index(("rename", "out"))
        assert {name for what, name in calls[:published] if what == "sync"} == {"a", "b", "c", "deep", ".out.partial"}
        assert calls[published - again : published] == [("rename", ".out.old")] * again, (
            "the previous folder stays until then"
        )
        assert calls[published + 1 :] == [("sync", "top")]


@pytest.mark.parametrize("dtypes", [["F64"], ["U8", "BF16", "F64"], ["F32", "F8_E4M3", "I64", "F16"]], ids="-".join)
def test_a_header_is_padded_so_that_every_tensor_is_aligned(tmp_path: Path, dtypes: list[str]) -> None:
    """Readers map the file into memory and view tensors in place."""
    for length in range(1, 9):
        layout = {f"{'x' * length}{number}": (dtype, (3,)) for number, dtype in enumerate(dtypes)}
        header = build_header(layout)
        assert len(header) % 8 == 0
        assert struct.unpack("<Q", header[:8])[0] == len(header) - 8
        path = tmp_path / f"{length}.safetensors"
        write_safetensors(path, header, lambda name, layout=layout: iter([np.ones(3, DTYPES[layout[name][0]])]))
        model = open_safetensors(path)
        for name, (dtype, _) in layout.items():
            assert model.info(name).offset % DTYPES[dtype].itemsize == 0
            assert (model.read(name) == 1).all()
