"""The compiled pass has the bits of numpy and ml_dtypes, for every value that a bfloat16 or a sum can take."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.checkpoint import kernel

BF16 = np.dtype(ml_dtypes.bfloat16)
SOURCE = Path(kernel.__file__).with_suffix(".c")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """kernel.c as the installation builds it, so that it is tested wherever there is a compiler."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler here, so numpy does this work")
    built = tmp_path_factory.mktemp("kernel") / "kernel.so"
    flags = ["-O3", "-ffp-contract=off", "-Wno-psabi", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", built, SOURCE], check=True)
    return kernel.typed(ctypes.CDLL(str(built)))


def every_word() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(BF16)


def finite(words: np.ndarray) -> np.ndarray:
    return words[np.isfinite(words.astype(np.float32))]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4095, 4096, 4097, 131_072, 131_075])
def test_a_difference_is_that_of_numpy(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    random = np.random.default_rng(size)
    after, before = (random.choice(finite(every_word()), size) for _ in range(2))
    out, expected = np.full(size, 7, np.float32), np.full(size, 9, np.float32)
    for library, place in ((compiled, out), (None, expected)):
        monkeypatch.setattr(kernel, "library", library)
        with np.errstate(over="ignore"):
            kernel.subtract(after, before, place)
    assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))
    with np.errstate(over="ignore"):
        assert np.array_equal(out, after.astype(np.float32) - before.astype(np.float32))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4095, 4096, 4097, 131_072, 131_075])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_a_sum_is_that_of_numpy_and_so_is_its_account(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int, spread: float
) -> None:
    random = np.random.default_rng(size)
    weights = (random.standard_normal(size) * 0.02).astype(BF16)
    delta = (random.standard_normal(size) * spread).astype(np.float32)
    delta[::5] = 0
    found, expected = np.empty(size, BF16), np.empty(size, BF16)
    monkeypatch.setattr(kernel, "library", compiled)
    sums = kernel.add(weights, delta, found)
    monkeypatch.setattr(kernel, "library", None)
    theirs = kernel.add(weights, delta, expected)
    before = weights.astype(np.float32)
    assert np.array_equal(found.view(np.uint16), (before + delta).astype(BF16).view(np.uint16))
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))
    exact = kernel.account(*(x.astype(np.float64) for x in (before, delta, found.astype(np.float32) - before)))
    np.testing.assert_allclose(sums, exact, rtol=1e-6)
    np.testing.assert_allclose(theirs, exact, rtol=2e-5)  # one float32 sum over the whole part
    assert np.array_equal(sums[5:], exact[5:])


def test_every_word_and_every_tie_is_rounded_as_numpy_rounds(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums that end in 0x8000, one less and one more, above every finite word: half way, below it, beyond it."""
    monkeypatch.setattr(kernel, "library", compiled)
    words = finite(every_word())
    weights = np.zeros(words.size, BF16)
    for tail in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        delta = ((words.view(np.uint16).astype(np.uint32) << 16) | tail).view(np.float32)
        result = np.empty(words.size, BF16)
        kernel.add(weights, delta, result)
        with np.errstate(over="ignore"):
            expected = (weights.astype(np.float32) + delta).astype(BF16)
        assert np.array_equal(result.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["weights", "delta"])
@pytest.mark.parametrize("at", [0, 8, 4096, 4100])
def test_what_is_not_finite_shows_in_the_sums(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, bad: float, where: str, at: int
) -> None:
    weights, delta = np.ones(4101, BF16), np.full(4101, 0.5, np.float32)
    (weights if where == "weights" else delta)[at] = bad
    for library in (compiled, None):
        monkeypatch.setattr(kernel, "library", library)
        with np.errstate(all="ignore"):
            assert not np.isfinite(kernel.add(weights, delta, np.empty(4101, BF16))).all()


def test_an_overflow_of_the_cast_shows_in_the_sums(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    largest = finite(every_word()).astype(np.float32).max()
    weights, delta = np.full(9, largest, BF16), np.full(9, largest / 100, np.float32)
    monkeypatch.setattr(kernel, "library", compiled)
    assert not np.isfinite(kernel.add(weights, delta, np.empty(9, BF16))).all()
