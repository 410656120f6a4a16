"""The benchmark of the weight engine: its models, measurements and checks, on a tiny triple."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.graft import cases, check, measure, table
from benchmarks.graft.launch import main as launch
from benchmarks.graft.triple import SHAPES, Triple, build
from shadowft_core.errors import GraftError, PairError, ShadowError
from shadowft_core.files.cache import DigestCache
from shadowft_core.weights import open_checkpoint

ROOT = Path(__file__).parent.parent
SHAPE = SHAPES["1.3M"]


@pytest.fixture(scope="module")
def triple(tmp_path_factory: pytest.TempPathFactory) -> Triple:
    return build(SHAPE, tmp_path_factory.mktemp("bench") / "in")


@pytest.fixture(scope="module")
def timed(triple: Triple, tmp_path_factory: pytest.TempPathFactory) -> dict[str, cases.Case]:
    """Run every case that needs no model library once."""
    here = tmp_path_factory.mktemp("timed")
    for storing in cases.store_deltas(triple, here / "stored"):
        measure.run(storing, "warm", here / "logs")
    found = {case.name: case for case in cases.all_cases(triple, here / "stored", here / "out", None)}
    for name in found.keys() - {"peft", "sigma-torch"}:
        sample = measure.run(found[name], "cold", here / "logs")
        assert sample.wall > 0, name
        assert 1e6 < sample.peak < 1e9, name
    return found


def test_the_models_have_the_sizes_in_their_names() -> None:
    for name, shape in SHAPES.items():
        count = sum(int(np.prod(dims)) for dims in shape.tensors().values())
        stated = float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
        assert count == pytest.approx(stated, rel=0.05), name


def test_the_triple_is_seeded_sharded_and_has_the_stated_distances(triple: Triple, tmp_path: Path) -> None:
    again = build(SHAPE, tmp_path)
    files = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        for root in (triple.base.parent, again.base.parent)
    ]
    assert files[0] == files[1], "the same bits every time"
    models = [open_checkpoint(path) for path in (triple.base, triple.tuned, triple.instruct)]
    name = "model.layers.0.mlp.down_proj.weight"
    base, tuned, instruct = (model.read(name).astype(np.float32) for model in models)
    assert all(len(model.shards) > 1 for model in models)
    assert np.std(base) == pytest.approx(0.02, rel=0.02)
    assert np.std(tuned - base) == pytest.approx(1e-4, rel=0.1)
    assert np.std(instruct - base) == pytest.approx(4e-4, rel=0.1)


@pytest.mark.slow
def test_the_result_equals_the_oracle_and_damage_is_found(timed: dict[str, cases.Case], tmp_path: Path) -> None:
    oracle = timed["state-dicts"].result
    assert oracle is not None
    for name in check.BITS_OF:
        result = timed[name].result
        assert result is not None
        found = check.compare((name, result), ("state-dicts", oracle))
        assert (found.differing, found.weights) == (0, sum(int(np.prod(d)) for d in SHAPE.tensors().values()))
    shard = next(iter(oracle.glob("*.safetensors")))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 0x40
    shard.write_bytes(data)
    results = {name: case.result for name, case in timed.items() if case.result is not None}
    with pytest.raises(GraftError, match=r"in 1 of .* the graft is wrong"):
        check.check_results(results)


def test_one_pass_has_every_goal_of_the_two_steps(timed: dict[str, cases.Case]) -> None:
    goals = {ours: {row[1:4] for row in table.RATIOS if row[0] == ours} for ours in ("one-pass", "extract+graft")}
    assert goals["extract+graft"] == {row for row in goals["one-pass"] if row[0] != "undigested"}
    assert table.PEAKS["one-pass"] == table.PEAKS["extract+graft"]
    named = {name for row in table.RATIOS for name in row[:2]} | table.PEAKS.keys()
    assert named - {"mergekit"} <= timed.keys(), "a goal of a case that is not run"


def test_one_pass_caches_every_digest_and_stores_no_delta(timed: dict[str, cases.Case], triple: Triple) -> None:
    result = timed["one-pass"].result
    assert result is not None
    assert [made.name for made in timed["one-pass"].out.iterdir()] == ["model"]
    recipe = json.loads((result / "recipe.json").read_bytes())
    digests = {name: open_checkpoint(getattr(triple, name)).digest() for name in ("base", "tuned")}
    assert recipe["deltas"] == [digests | {"scale": 1.0}]
    cache = Path(timed["one-pass"].steps[0][1].partition("=")[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHADOWFT_CACHE", str(cache))
        for folder in (triple.base, triple.tuned, triple.instruct):
            shards = folder.glob("*.safetensors")
            known = {name for shard in shards for name in DigestCache(shard).digests}
            assert known == set(open_checkpoint(folder).names), f"{folder.name} would be read again to be hashed"


def test_the_lora_case_grafts_the_adapter(timed: dict[str, cases.Case], triple: Triple) -> None:
    result = timed["lora"].result
    assert result is not None
    name = "model.layers.1.self_attn.k_proj.weight"
    moved = open_checkpoint(result).read(name) != open_checkpoint(triple.instruct).read(name)
    assert moved.mean() > 0.3


@pytest.mark.slow  # a busy kernel may keep a page despite the request to drop it
def test_cold_inputs_are_not_in_the_page_cache_and_warm_ones_are(triple: Triple) -> None:
    shard = next(iter(sorted(triple.base.glob("*.safetensors"))))

    def cached() -> bool:
        descriptor = os.open(shard, os.O_RDONLY)
        try:
            return os.preadv(descriptor, [bytearray(4096)], 0, os.RWF_NOWAIT) > 0
        except BlockingIOError:
            return False
        except OSError:
            pytest.skip("this file system does not say what is cached")
        finally:
            os.close(descriptor)

    measure.warm(triple.base)
    assert cached()
    measure.drop(triple.base)
    assert not cached()


def test_a_process_is_measured_with_its_children(tmp_path: Path) -> None:
    code = "import time; b = bytearray(60_000_000); t = time.process_time()\nwhile time.process_time() - t < 0.2: pass"
    report = tmp_path / "report.json"
    assert launch(str(report), ["sh", "-c", f"{sys.executable} -c '{code}'; exit 7"]) == 7
    taken = json.loads(report.read_text())
    assert taken["cpu"] >= 0.2
    assert taken["wall"] >= 0.2
    assert taken["peak"] > 60_000_000


def test_a_case_that_fails_names_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such peer')"]
    case = cases.Case("broken", "", (command,), (), tmp_path / "out")
    with pytest.raises(ShadowError, match=r"broken: exit code 1 \(no such peer\).*broken.log"):
        measure.run(case, "warm", tmp_path / "logs")


def test_sigma_must_agree() -> None:
    assert "0.01" in check.check_sigma(0.01, 0.0100000001)
    with pytest.raises(PairError, match=r"0\.01 by the pair check, 0\.011 by torch"):
        check.check_sigma(0.01, 0.011)


def test_ratios_within_a_round_are_compared_with_goals() -> None:
    def walls(*seconds: float) -> list[measure.Sample]:
        return [measure.Sample(wall, wall, 90_000_000, 0) for wall in seconds]

    samples = {("extract", "warm"): walls(1, 4, 3), ("graft", "warm"): walls(2, 4, 1)}
    (ratio,) = table.ratios(samples, "1.1B")
    assert (ratio.median, ratio.lowest, ratio.highest, ratio.met) == (1, 0.5, 3, True)
    samples |= {("cp", "warm"): walls(1, 1, 0.2), ("extract+graft", "warm"): walls(1, 1, 1)}
    samples |= {("one-pass", "warm"): walls(4, 3, 1), ("undigested", "warm"): walls(4, 2, 1)}
    met = {(one.ours, one.peer): one.met for one in table.ratios(samples, "1.1B")}
    assert met == {
        ("extract", "graft"): True,
        ("graft", "cp"): False,
        ("extract+graft", "cp"): True,
        ("one-pass", "cp"): False,
        ("one-pass", "undigested"): True,
    }
    assert {one.met for one in table.ratios(samples, "0.15B")} == {None}, "the goals are those of another size"


def test_a_missing_mergekit_is_reported(tmp_path: Path) -> None:
    assert cases.mergekit_version(tmp_path / "python") is None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[list[str]]:
    yield [
        *(sys.executable, "-m", "benchmarks.graft", "--scratch", str(tmp_path / "scratch"), "--params", "1.3M"),
        *("--rounds", "1", "--cache", "warm", "--out", str(tmp_path / "results")),
    ]
    assert not list((tmp_path / "scratch").glob("*")), "nothing is left in the scratch folder"


def test_an_interrupt_ends_every_process_and_writes_nothing(bench: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(bench, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "round 1/1, 1/" in line:
                break
        running.send_signal(signal.SIGINT)
        assert running.stderr.read().rstrip().endswith("run the same command again")
    assert running.returncode == 130
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_the_whole_benchmark_writes_its_table(bench: list[str], tmp_path: Path) -> None:
    subprocess.run(bench, cwd=ROOT, check=True)
    page = (tmp_path / "results" / "graft-1.3M.md").read_text()
    found = json.loads((tmp_path / "results" / "graft-1.3M.json").read_text())
    assert str(tmp_path) not in page
    assert "| peft | warm |" in page
    assert "equals `state-dicts` bit for bit" in page
    assert len(found["samples"]["lora"]["warm"]) == 1
    assert {one["peer"] for one in found["ratios"]} >= {"cp", "state-dicts", "undigested", "peft", "sigma-torch"}
