"""A folder or JSON file that a program writes is complete or absent."""

import hashlib
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.errors import ShadowError
from shadowft_core.files import canonical_json, file_digest, new_folder, write_json_atomically
from shadowft_core.weights import write_checkpoint

TENSORS = {"w": np.zeros(1000, np.float32)}


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": 1, "a": ["ü", 1.5, None]}) == '{"a":["ü",1.5,null],"b":1}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def fail_half_way(out: Path) -> None:
    with new_folder(out) as folder:
        (folder / "half").write_text("x")
        raise KeyError


def test_a_folder_is_complete_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(KeyError):
        fail_half_way(out)
    assert list(out.parent.iterdir()) == []
    for text in ("old", "new"):
        with new_folder(out) as folder:
            assert list(folder.iterdir()) == []
            (folder / text).write_text(text)
            assert not (out / text).exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(KeyError):
        fail_half_way(out)
    assert [path.name for path in out.iterdir()] == ["new"], "a failed run must leave the former result"


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with (
        new_folder(tmp_path / "out"),
        pytest.raises(ShadowError, match="another process"),
        new_folder(tmp_path / "out"),
    ):
        pass
    (tmp_path / "file").write_text("x")
    with pytest.raises(ShadowError, match="is a file"), new_folder(tmp_path / "file"):
        pass


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path.parent):
        with pytest.raises(ShadowError, match="current folder"), new_folder(out):
            pass


def test_a_killed_writer_leaves_no_folder_and_the_next_run_succeeds(tmp_path: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        import numpy as np
        from shadowft_core.files import new_folder
        from shadowft_core.weights import write_checkpoint
        with new_folder(Path(sys.argv[1])) as folder:
            write_checkpoint(folder, [("w", np.zeros(1000, np.float32))])
            print("half", flush=True)
            time.sleep(60)
    """
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(out)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "half\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not out.exists()
    with new_folder(out) as folder:
        assert list(folder.iterdir()) == []
        write_checkpoint(folder, TENSORS.items())
    assert list(tmp_path.iterdir()) == [out]


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "new" / "x.json", {"a": 1})
    assert (tmp_path / "new" / "x.json").read_bytes() == b'{"a":1}'
    assert file_digest(tmp_path / "new" / "x.json") == "sha256:" + hashlib.sha256(b'{"a":1}').hexdigest()
    assert len(list((tmp_path / "new").iterdir())) == 1
