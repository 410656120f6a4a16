"""The memory that a graft takes does not depend on the size of the model."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.models import write_model
from tests.test_graft import BF16

MEASURED = r"""
import re, sys
from pathlib import Path
from shadowft_core.delta import extract
from shadowft_core.grafting import graft
base, instruct, tuned, delta, out = map(Path, sys.argv[1:])
extract(base, tuned, delta)
graft(instruct, [(delta, 1.0)], out)
assert "torch" not in sys.modules
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    peaks = {}
    for rows in (1000, 60_000):
        folder = tmp_path / str(rows)
        weights = np.full((rows, 2048), 0.5, BF16)
        for name, step in {"base": 0, "instruct": 1, "tuned": 2}.items():
            weights[:, ::7] = 0.5 + step / 64
            write_model(folder / name, {"a.weight": weights, "b.weight": weights})
        folders = [str(folder / name) for name in ("base", "instruct", "tuned", "delta", "out")]
        done = subprocess.run([sys.executable, "-c", MEASURED, *folders], capture_output=True, text=True, check=True)
        peaks[rows] = int(done.stdout)
        shutil.rmtree(folder)
    assert peaks[60_000] < 100, f"MB by rows: {peaks}; one tensor alone is 245 MB"
    assert peaks[60_000] < peaks[1000] + 20, f"MB by rows: {peaks}"
