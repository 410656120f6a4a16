"""The compiled kernels give the bits of numpy and ml_dtypes for every bfloat16 value and every rounding case."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from shadowft_core.kernels import bf16

BF16 = np.dtype(ml_dtypes.bfloat16)
SOURCE = Path(bf16.__file__).with_suffix(".c")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """bf16.c compiled as the installation does it, so that it is tested wherever there is a compiler."""
    if not (compiler := shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler, so numpy does this work")
    built = tmp_path_factory.mktemp("kernel") / "kernel.so"
    flags = ["-O3", "-ffp-contract=off", "-Wno-psabi", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", built, SOURCE], check=True)
    return bf16.typed(ctypes.CDLL(str(built)))


def every_word() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(BF16)


def finite(words: np.ndarray) -> np.ndarray:
    return words[np.isfinite(words.astype(np.float32))]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4095, 4096, 4097, 131_072, 131_075])
def test_subtract_equals_numpy(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    random = np.random.default_rng(size)
    after, before = (random.choice(finite(every_word()), size) for _ in range(2))
    out, expected = np.full(size, 7, np.float32), np.full(size, 9, np.float32)
    for library, place in ((compiled, out), (None, expected)):
        monkeypatch.setattr(bf16, "library", library)
        with np.errstate(over="ignore"):
            bf16.subtract(after, before, place)
    assert np.array_equal(out.view(np.uint32), expected.view(np.uint32))
    with np.errstate(over="ignore"):
        assert np.array_equal(out, after.astype(np.float32) - before.astype(np.float32))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 4095, 4096, 4097, 131_072, 131_075])
@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_add_and_its_sums_equal_numpy(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int, spread: float
) -> None:
    random = np.random.default_rng(size)
    weights = (random.standard_normal(size) * 0.02).astype(BF16)
    delta = (random.standard_normal(size) * spread).astype(np.float32)
    delta[::5] = 0
    found, expected = np.empty(size, BF16), np.empty(size, BF16)
    monkeypatch.setattr(bf16, "library", compiled)
    sums = bf16.add(weights, delta, found)
    monkeypatch.setattr(bf16, "library", None)
    sums_of_numpy = bf16.add(weights, delta, expected)
    before = weights.astype(np.float32)
    assert np.array_equal(found.view(np.uint16), (before + delta).astype(BF16).view(np.uint16))
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))
    exact = bf16.account(*(x.astype(np.float64) for x in (before, delta, found.astype(np.float32) - before)))
    np.testing.assert_allclose(sums, exact, rtol=1e-6)
    np.testing.assert_allclose(sums_of_numpy, exact, rtol=1e-6)
    assert np.array_equal(sums[5:], exact[5:])


def test_every_value_and_every_tie_is_rounded_as_by_numpy(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums above every finite value by half a unit (0x8000), slightly less, slightly more, and by the extremes."""
    monkeypatch.setattr(bf16, "library", compiled)
    words = finite(every_word())
    weights = np.zeros(words.size, BF16)
    for tail in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        delta = ((words.view(np.uint16).astype(np.uint32) << 16) | tail).view(np.float32)
        result = np.empty(words.size, BF16)
        bf16.add(weights, delta, result)
        with np.errstate(over="ignore"):
            expected = (weights.astype(np.float32) + delta).astype(BF16)
        assert np.array_equal(result.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["weights", "delta"])
@pytest.mark.parametrize("at", [0, 8, 4096, 4100])
def test_a_value_that_is_not_finite_makes_the_sums_not_finite(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, bad: float, where: str, at: int
) -> None:
    weights, delta = np.ones(4101, BF16), np.full(4101, 0.5, np.float32)
    (weights if where == "weights" else delta)[at] = bad
    for library in (compiled, None):
        monkeypatch.setattr(bf16, "library", library)
        with np.errstate(all="ignore"):
            assert not np.isfinite(bf16.add(weights, delta, np.empty(4101, BF16))).all()


def test_an_overflow_of_the_cast_makes_the_sums_not_finite(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = finite(every_word()).astype(np.float32).max()
    weights, delta = np.full(9, largest, BF16), np.full(9, largest / 100, np.float32)
    monkeypatch.setattr(bf16, "library", compiled)
    assert not np.isfinite(bf16.add(weights, delta, np.empty(9, BF16))).all()


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4097, 131_075])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.5, 1.0])
def test_rounding_and_its_exceptions_equal_numpy(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int, share: float
) -> None:
    random = np.random.default_rng(size)
    values = random.choice(finite(every_word()), size).astype(np.float32)
    exceptions = random.random(size) < share
    values[exceptions] = np.nextafter(values[exceptions], np.float32(0), dtype=np.float32)
    values[:1] = np.finfo(np.float32).max  # overflows bfloat16
    found = []
    for library in (compiled, None):
        monkeypatch.setattr(bf16, "library", library)
        words = np.empty(size, "<u2")
        odd, square = bf16.rounded(values, words)
        found.append((words.copy(), odd.copy(), square))
    (words, odd, square), (expected_words, expected, exact) = found
    assert np.array_equal(words, expected_words)
    assert np.array_equal(odd, expected)
    with np.errstate(over="ignore"):
        assert np.array_equal(odd, np.flatnonzero(values.astype(BF16).astype(np.float32) != values))
    assert square == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_makes_the_square_not_finite(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    for at in (0, 70, 130):
        values = np.ones(131, np.float32)
        values[at] = bad
        for library in (compiled, None):
            monkeypatch.setattr(bf16, "library", library)
            assert not np.isfinite(bf16.rounded(values, np.empty(131, "<u2"))[1])


@pytest.mark.parametrize("size", [1, 15, 65_536, 131_075])
def test_split_equals_numpy_and_joined_inverts_it(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    words = np.resize(np.arange(1 << 16, dtype="<u2"), size)
    found = []
    for library in (compiled, None):
        monkeypatch.setattr(bf16, "library", library)
        planes, values = np.empty(2 * size, np.uint8), np.empty(size, np.float32)
        bf16.split(words, planes)
        bf16.joined(planes, 2, values)
        found.append((planes, values))
    (planes, back), (expected_planes, expected) = found
    assert np.array_equal(planes, expected_planes)
    assert np.array_equal(back.view(np.uint32), expected.view(np.uint32))
    assert np.array_equal(back.view(np.uint32), words.astype(np.uint32) << 16)


def test_joined_inverts_split_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    planes, back = np.empty(4004, np.uint8), np.empty(1001, np.float32)
    bf16.split(values.view("<u4"), planes)
    bf16.joined(planes, 4, back)
    assert np.array_equal(back.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("scale", [1.0, 0.3, -0.75])
@pytest.mark.parametrize("size", [1, 9, 4097, 131_075])
def test_a_lazy_difference_is_computed_inside_the_sum(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int, scale: float
) -> None:
    random = np.random.default_rng(size)
    before, weights = ((random.standard_normal(size) * 0.02).astype(BF16) for _ in range(2))
    after = (before.astype(np.float32) + random.standard_normal(size).astype(np.float32) * 1e-3).astype(BF16)
    delta = (after.astype(np.float32) - before.astype(np.float32)) * np.float32(scale)
    expected = (weights.astype(np.float32) + delta).astype(BF16)
    for library in (compiled, None):
        monkeypatch.setattr(bf16, "library", library)
        result = np.empty(size, BF16)
        sums = bf16.add(weights, bf16.LazyDifference(after, before, scale), result)
        assert np.array_equal(result.view(np.uint16), expected.view(np.uint16))
        np.testing.assert_allclose(sums, bf16.add(weights, delta, np.empty(size, BF16)), rtol=1e-6)


def test_a_library_of_another_version_or_system_is_not_loaded_and_the_reason_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: ctypes.CDLL
) -> None:
    built = tmp_path / "libbf16.so"
    shutil.copy(compiled._name, built)
    monkeypatch.setattr(bf16, "__file__", str(tmp_path / "kernel.py"))
    found, reason = bf16._built()
    assert (found is not None, reason) == (True, "")
    monkeypatch.setattr(bf16, "VERSION", bf16.VERSION + 1)
    assert bf16._built() == (None, "libbf16.so was built from an earlier source: install again")
    built.unlink()
    assert bf16._built() == (None, "not built: a pure wheel, or no C compiler at installation")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/libbf16.so").write_bytes(b"of another system")
    monkeypatch.setattr(bf16, "__file__", str(tmp_path / "other/kernel.py"))
    found, reason = bf16._built()
    assert found is None
    assert reason.startswith("libbf16.so was built for another system: ")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1023, 1024, 1025, 4095, 4096, 4097, 5129, 131_072, 131_075])
def test_distance_equals_numpy(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    random = np.random.default_rng(size)
    a = (random.standard_normal(size) * 0.02).astype(BF16)
    b = (a.astype(np.float32) + random.standard_normal(size) * 1e-3).astype(BF16)
    monkeypatch.setattr(bf16, "library", compiled)
    sums = bf16.distance(a, b)
    monkeypatch.setattr(bf16, "library", None)
    expected = bf16.distance(a, b)
    np.testing.assert_allclose(sums, expected, rtol=1e-14)  # the same columns, added up in another order
    x, y = a.astype(np.float64), b.astype(np.float64)
    exact = [np.abs(x - y).sum(), np.abs(x).sum(), np.abs(y).sum()]
    np.testing.assert_allclose(sums, exact, rtol=1e-6)


def test_distance_accepts_every_value(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    words = finite(every_word())
    words = words[np.abs(words.astype(np.float32)) < 1e36]  # so that no column overflows
    random = np.random.default_rng(0)
    pairs = words, random.permutation(words)
    monkeypatch.setattr(bf16, "library", compiled)
    sums = bf16.distance(*pairs)
    monkeypatch.setattr(bf16, "library", None)
    np.testing.assert_allclose(sums, bf16.distance(*pairs), rtol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 8, 4095, 4096, 4100])
def test_a_value_that_is_not_finite_shows_on_its_side_of_the_distance(
    compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, bad: float, at: int
) -> None:
    intact, damaged = np.ones(4101, BF16), np.ones(4101, BF16)
    damaged[at] = bad
    for library in (compiled, None):
        monkeypatch.setattr(bf16, "library", library)
        assert np.isfinite(bf16.distance(intact, damaged)).tolist() == [False, True, False]
        assert np.isfinite(bf16.distance(damaged, intact)).tolist() == [False, False, True]
