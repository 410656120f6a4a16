"""A candidate of the route direct, which tunes the Instruct itself: registered, promoted, rebuilt, served, exported."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shadowft_core.store as stores
from shadowft_core import promotion
from shadowft_core.delta import open_delta
from shadowft_core.errors import PromotionRefusedError, RegistryError
from shadowft_core.export import export_adapter
from shadowft_core.files import file_digest, read_json_object, write_json_atomically
from shadowft_core.grafting import options_of
from shadowft_core.promotion.start import write_champion
from shadowft_core.registry import candidate_of, ingredients
from shadowft_core.registry.evidence import Evidence
from shadowft_core.weights import open_checkpoint
from tests.fixtures.runs import ROOT, Run, name_direct

OTHER = "sha256:" + "0" * 64


@pytest.fixture
def direct(run: Run) -> tuple[Run, dict[str, Any]]:
    return run, name_direct(run.work)


def recipe_of(run: Run) -> dict[str, Any]:
    return Evidence(run.params, run.work, run.lock, ROOT / "params.yaml").registration(None).recipe


def change(path: Path, **fields: Any) -> None:
    write_json_atomically(path, read_json_object(path) | fields)


def test_its_recipe_names_the_instruct_as_what_was_tuned(direct: tuple[Run, dict[str, Any]], client: Any) -> None:
    run, grafted = direct
    version = run.register()
    assert (version.number, version.decision) == (1, "promote")
    recipe = promotion.recipe_named(f"models:/{version.name}/1", run.params.registry, run.params.store)
    assert recipe["base"] == recipe["instruct"] == read_json_object(run.work / "pair/pair.json")["instruct"]
    assert (recipe["arm"], recipe["digest"], recipe["waivers"]) == ("direct_scaled", grafted["digest"], ["onto-base"])
    registered = client.get_model_version(version.name, "1")
    assert (
        registered.tags.items()
        >= {
            "shadowft.arm": "direct_scaled",
            "shadowft.route": "direct",
            "shadowft.delta": file_digest(run.work / "delta/direct/delta.json"),
            "shadowft.model": grafted["digest"],
            "shadowft.base": recipe["instruct"]["digest"],
            "shadowft.scale": "0.5",
        }.items()
    )
    assert "- Arm: `direct_scaled`\n- Base: none, the Instruct itself was tuned\n- Instruct: " in registered.description
    published = [delta for delta in (run.work / "delta").iterdir() if _stored(run, delta)]
    assert [delta.name for delta in published] == ["direct"]
    assert recipe_of(run) == recipe, "it is the same each time"


def _stored(run: Run, delta: Path) -> bool:
    return stores.holds(file_digest(delta / "delta.json"), run.params.store)


def test_it_is_promoted_rebuilt_served_and_exported(
    direct: tuple[Run, dict[str, Any]], client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    run, grafted = direct
    registry, store = run.params.registry, run.params.store
    run.register()
    entry = promotion.promote(registry, store).entry
    assert (entry.model, entry.override) == (grafted["digest"], False)
    champion = f"models:/{registry.name}@champion"
    recipe = run.materialize(champion, tmp_path / "rebuilt")
    assert open_checkpoint(tmp_path / "rebuilt").digest() == recipe["digest"] == grafted["digest"]

    monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SHADOWFT_STORE_URI", store.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.tracking_uri)
    mlflow.set_registry_uri(registry.tracking_uri)
    [reply] = mlflow.pyfunc.load_model(champion).predict({"messages": [{"role": "user", "content": "word1"}]})
    assert isinstance(reply, str)
    assert open_checkpoint(tmp_path / "cache" / recipe["digest"].removeprefix("sha256:")).digest() == grafted["digest"]

    folder, deltas = ingredients(recipe, tmp_path / "parts")
    export_adapter(folder, deltas, tmp_path / "adapter", options_of(recipe))
    _require_adapter_gives(run, tmp_path / "adapter")

    write_champion(registry, store, run.work / "pair/pair.json", tmp_path / "start")
    assert read_json_object(tmp_path / "start/start.json")["base"] == recipe["instruct"]["digest"]
    assert open_delta(tmp_path / "start/delta").digest == recipe["deltas"][0]["digest"]


def _require_adapter_gives(run: Run, adapter: Path) -> None:
    """PEFT merges the exported adapter into the Instruct: the grafted weights but for their rounding to bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run.work / "pair/instruct", dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    made, before = open_checkpoint(run.work / "grafted/direct"), open_checkpoint(run.work / "pair/instruct")
    name = "model.layers.0.mlp.up_proj.weight"
    assert (made.read(name) != before.read(name)).any()
    np.testing.assert_allclose(merged[name].numpy(), np.asarray(made.read(name), np.float32), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_without_candidate_json_the_judged_model_names_it(direct: tuple[Run, dict[str, Any]], first: bool) -> None:
    """As in workspaces of older versions. If two grafts are that model, the verdict's own name decides."""
    run, grafted = direct
    (run.work / "candidate.json").unlink()
    shutil.copytree(run.work / "grafted/direct", run.work / "grafted" / ("a_twin" if first else "twin"))
    assert candidate_of(run.work)[0] == "direct"
    assert recipe_of(run)["digest"] == grafted["digest"]
    change(run.work / "verdict.json", candidate="shadow_scaled")  # as every verdict of format 1 says
    assert candidate_of(run.work)[0] == ("a_twin" if first else "direct")
    change(run.work / "verdict.json", recipe_digest=OTHER, candidate="elsewhere_scaled")
    with pytest.raises(RegistryError, match=f"grafted: no recipe.json makes the judged model {OTHER}; run `dvc repro`"):
        run.register()


def test_an_older_verdict_gives_the_recipe_that_it_gave_before(run: Run, client: Any) -> None:
    """Registering such a run again makes no second version."""
    assert "arm" not in recipe_of(run)
    version = run.register()
    assert "shadowft.arm" not in client.get_model_version(version.name, "1").tags


@pytest.mark.parametrize("by", ["candidate.json", "verdict.json"])
def test_nothing_is_registered_without_a_candidate(direct: tuple[Run, dict[str, Any]], client: Any, by: str) -> None:
    run, _ = direct
    change(run.work / "verdict.json", candidate=None, recipe_digest=None, decision="hold", reasons=["no arm is better"])
    if by == "candidate.json":
        change(run.work / by, arm=None, route=None, scale=None, reason="Nothing beats the Instruct.")
    else:
        (run.work / "candidate.json").unlink()
    reason = {"candidate.json": r"Nothing beats the Instruct\.", "verdict.json": "no arm is better"}[by]
    with pytest.raises(RegistryError, match=f"there is no candidate, so there is nothing to register: {reason}"):
        run.register()
    assert client.search_model_versions(f"name = '{run.params.registry.name}'") == []
    assert not run.pending.exists()
    assert not Path(run.params.store.uri, "deltas").exists()


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("verdict.json", {"candidate": "shadow_scaled"}, r"direct_scaled in candidate\.json, shadow_scaled in verdict"),
        ("verdict.json", {"candidate": None}, r"direct_scaled in candidate\.json, None in verdict\.json"),
        ("candidate.json", {"arm": "shadow_scaled", "route": "shadow"}, r"shadow_scaled in candidate\.json, direct"),
        ("candidate.json", {"arm": 3}, r"candidate\.json: arm: .*run `shadowft select` again; then run `dvc repro`"),
        ("verdict.json", {"recipe_digest": OTHER}, r"the judged model is sha256:0000.*recipe\.json has sha256:"),
        ("pair/pair.json", {"base": {"ref": "b", "digest": OTHER}}, "the Instruct is .*different runs"),
    ],
)
def test_files_of_different_runs_are_refused(
    direct: tuple[Run, dict[str, Any]], file: str, fields: dict[str, Any], said: str
) -> None:
    run, _ = direct
    if file == "pair/pair.json":
        fields = fields | {"instruct": {"ref": "i", "digest": OTHER}}
        said = rf"delta\.json: the delta is against sha256:.*, pair\.json has the Base {OTHER} and the Instruct {OTHER}"
    change(run.work / file, **fields)
    with pytest.raises(RegistryError, match=said):
        run.register()
    assert not run.pending.exists()


def test_a_verdict_about_another_arm_promotes_nothing(direct: tuple[Run, dict[str, Any]]) -> None:
    """Both arms may be the same model; the claims are about one of them."""
    run, _ = direct
    (run.work / "candidate.json").unlink()
    verdict = read_json_object(run.work / "verdict.json")
    change(run.work / "verdict.json", candidate="twin_scaled")
    run.register()
    with pytest.raises(RegistryError, match="its verdict is about twin_scaled, its recipe is of direct_scaled"):
        promotion.promote(run.params.registry, run.params.store)
    write_json_atomically(run.work / "verdict.json", json.loads(json.dumps(verdict)) | {"note": "again"})
    run.register()
    assert promotion.promote(run.params.registry, run.params.store).changed


def test_a_hold_of_another_route_is_refused_with_its_reasons(direct: tuple[Run, dict[str, Any]]) -> None:
    from tests.fixtures.arms import CLEAR, arena, decided, five

    run, grafted = direct
    found = decided(arena(five(CLEAR | {"direct_scaled": 40})), candidate="direct_scaled")
    write_json_atomically(run.work / "verdict.json", found | {"recipe_digest": grafted["digest"]})
    run.register()
    with pytest.raises(PromotionRefusedError, match=r"the verdict is hold: domain: direct_scaled 0\.100 against inst"):
        promotion.promote(run.params.registry, run.params.store)
