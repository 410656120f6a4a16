"""The stage start: the champion's delta from a real store, pinned; what is refused; what the flow asks for."""

import json
from pathlib import Path
from typing import Any

import pytest

from shadowft_core import promotion
from shadowft_core.delta import open_delta
from shadowft_core.errors import RegistryError, StoreError, WrongBaseError
from shadowft_core.files import canonical_json
from shadowft_core.params import load_params
from shadowft_core.pipeline import steps
from shadowft_core.pipeline.run import Run
from shadowft_core.promotion.start import write_champion, write_scratch
from tests.fixtures.cli import Shadowft
from tests.fixtures.runs import Released
from tests.fixtures.training import tree
from tests.test_routes import with_routes


def facts_of(folder: Path) -> Any:
    return json.loads((folder / "start.json").read_text())


def test_the_delta_of_the_champion_is_fetched_and_pinned(
    released: Released, finished_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair, delta = finished_work / "pair/pair.json", open_delta(finished_work / "delta/shadow")
    write_champion(released.registry, released.store, pair, tmp_path / "none")
    assert facts_of(tmp_path / "none") == {
        "format": 1, "start": "scratch", "reason": f"{released.name} has no champion"
    }  # fmt: skip
    assert "nothing was ever promoted; training starts from scratch" in capsys.readouterr().err

    entry = promotion.promote(released.registry, released.store, "1").entry
    for out in ("one", "two"):
        write_champion(released.registry, released.store, pair, tmp_path / out)
    assert tree(tmp_path / "one") == tree(tmp_path / "two"), "the same champion gives the same bytes"
    assert facts_of(tmp_path / "one") == {
        "format": 1, "start": "champion", "name": released.name, "version": 1, "delta": delta.digest,
        "recipe": entry.recipe, "base": delta.base_digest,
    }  # fmt: skip
    assert open_delta(tmp_path / "one/delta").digest == delta.digest
    promotion.promote(released.registry, released.store, "2")
    write_champion(released.registry, released.store, pair, tmp_path / "moved")
    assert facts_of(tmp_path / "moved")["version"] == 2


def test_a_champion_of_another_base_is_refused_with_both_digests(
    released: Released, finished_work: Path, tmp_path: Path
) -> None:
    promotion.promote(released.registry, released.store, "1")
    pair = json.loads((finished_work / "pair/pair.json").read_text())
    own = pair["base"]["digest"]
    pair["base"]["digest"] = "sha256:" + "e" * 64
    (tmp_path / "pair.json").write_text(json.dumps(pair))
    with pytest.raises(
        WrongBaseError, match=f"from the Base {own}, .*pair.json has sha256:{'e' * 64}; set train.start"
    ):
        write_champion(released.registry, released.store, tmp_path / "pair.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_champion_that_the_store_lacks_is_refused(
    released: Released, finished_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = promotion.promote(released.registry, released.store, "1").entry
    pair, root = finished_work / "pair/pair.json", Path(released.store.uri)
    record = next(root.rglob(f"records/*{entry.recipe.removeprefix('sha256:')}*"))
    raw = record.read_bytes()
    record.unlink()
    with pytest.raises(RegistryError, match=f"its recipe {entry.recipe} is not in store"):
        write_champion(released.registry, released.store, pair, tmp_path / "out")
    record.write_bytes(raw)
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)  # else the folder that the recipe names is read
    for claim in (root / "deltas").iterdir():
        claim.unlink()
    with pytest.raises(StoreError):
        write_champion(released.registry, released.store, pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_champion_of_several_deltas_is_refused(
    released: Released, finished_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe in the store is replaced on its way: registering a merge of several deltas is refused earlier."""
    from shadowft_core import store as stores

    entry = promotion.promote(released.registry, released.store, "1").entry
    recipe = json.loads(stores.record(entry.recipe, released.store) or b"")
    recipe["deltas"] *= 2
    monkeypatch.setattr(stores, "record", lambda digest, store: canonical_json(recipe))
    with pytest.raises(RegistryError, match="its recipe merges 2 deltas, a training can start from one"):
        write_champion(released.registry, released.store, finished_work / "pair/pair.json", tmp_path / "out")


def test_scratch_needs_no_store_and_no_pair(shadowft: Shadowft, tmp_path: Path) -> None:
    params = with_routes(tmp_path)
    assert shadowft("start", "--params", params, "--pair", tmp_path / "none", "--out", tmp_path / "a").code == 0
    write_scratch(tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b") == {"start.json": b'{"format":1,"start":"scratch"}'}


def test_one_route_that_starts_from_the_champion_is_enough(
    shadowft: Shadowft, released: Released, finished_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(released.registry, released.store, "1")
    monkeypatch.setenv("SHADOWFT_STORE_URI", released.store.uri)
    params = with_routes(tmp_path, weekly={"model": "base", "train": {"start": "champion"}})
    params.write_text(params.read_text().replace("name: shadowft-pico", f"name: {released.name}"))
    pair = finished_work / "pair/pair.json"
    assert shadowft("start", "--params", params, "--pair", pair, "--out", tmp_path / "out").code == 0
    assert facts_of(tmp_path / "out")["start"] == "champion"


def test_a_run_reads_the_store_each_time_and_of_its_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = load_params(with_routes(tmp_path))
    assert steps.reading_the_store(scratch) == {"look"}
    warm = with_routes(tmp_path, weekly={"model": "base", "train": {"start": "champion"}})
    assert steps.reading_the_store(load_params(warm)) == {"look", "start"}
    with Run(str(tmp_path), None, None, "other"):
        assert load_params(warm).registry.name == "other", "what the stages of the run read"
    assert load_params(warm).registry.name == "shadowft-pico"
    with Run(str(tmp_path), None, None, "not a name") as run:
        load_params(warm)
    assert "expected the name of a model" in (run.state.message or "")
