"""A recipe applied to another Instruct of the same Base: same deltas, new digest, no verdict."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shadowft_core.cli import main
from shadowft_core.delta import extract, open_delta
from shadowft_core.errors import GraftError, OntoBaseError, RegistryError, ShadowError, UnrelatedError
from shadowft_core.files import bytes_digest, canonical_json, write_json_atomically
from shadowft_core.grafting import Merge, Options, graft, grafted_tensors
from shadowft_core.params import Store, load_params
from shadowft_core.registry.evidence import Evidence
from shadowft_core.registry.rebuild import rebuild
from shadowft_core.registry.regraft import regraft
from shadowft_core.store import publish
from shadowft_core.weights import open_checkpoint
from tests.fixtures.models import write_model
from tests.test_graft import BF16, F32, bits, make, noise, tensors_of

ROOT = Path(__file__).parent.parent
OPTIONS = Options(["*proj*"], merge=Merge("ties", 0.3), scale_for=[("*down_proj*", 0.1)])


@dataclass
class World:
    base: Path
    instruct: Path
    newer: Path
    stranger: Path
    deltas: list[Path]
    recipe: Path
    out: Path

    def refused(self, kind: type[ShadowError], message: str, *arguments: Any) -> None:
        with pytest.raises(kind, match=message) as caught:
            regraft(*arguments, self.out)
        assert "\n" not in str(caught.value)
        assert not list(self.out.parent.glob(f"*{self.out.name}*")), "something was left behind"


@pytest.fixture
def world(tmp_path: Path) -> World:
    base, instruct, _ = make(BF16)
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "instruct", instruct, 2)
    newer = {n: (a.astype(F32) + noise(40, 0.0007)[n]).astype(BF16) for n, a in instruct.items()}
    write_model(tmp_path / "newer", newer)
    write_model(tmp_path / "stranger", {n: a.astype(BF16) for n, a in noise(41, 0.02).items()})
    for number in range(2):
        tuned = {n: (a.astype(F32) + noise(30 + number, 0.001)[n]).astype(BF16) for n, a in base.items()}
        extract(tmp_path / "base", write_model(tmp_path / f"t{number}", tuned), tmp_path / f"delta{number}")
    deltas = [tmp_path / "delta0", tmp_path / "delta1"]
    graft(
        tmp_path / "instruct",
        [(deltas[0], 0.6), (deltas[1], 0.4)],
        tmp_path / "grafted",
        OPTIONS,
    )
    return World(
        *(tmp_path / name for name in ("base", "instruct", "newer", "stranger")),
        deltas,
        tmp_path / "grafted" / "recipe.json",
        tmp_path / "carried",
    )


def test_the_newer_instruct_gets_the_same_deltas_scales_and_rule(world: World) -> None:
    old = json.loads(world.recipe.read_bytes())
    made = regraft(world.recipe, world.newer, world.deltas[::-1], world.out)
    assert made == json.loads((world.out / "recipe.json").read_bytes())
    assert {key: made[key] for key in ("deltas", "scope", "dtype", "merge", "scale_for", "waivers")} == {
        key: old[key] for key in ("deltas", "scope", "dtype", "merge", "scale_for", "waivers")
    }
    assert made["needs_verdict"] is True
    assert made["regrafted_from"] == bytes_digest(canonical_json(old))
    assert made["instruct"]["digest"] == open_checkpoint(world.newer).digest() != old["instruct"]["digest"]
    assert made["digest"] == open_checkpoint(world.out).digest() != old["digest"]
    expected = grafted_tensors(
        world.newer,
        [(world.deltas[0], 0.6), (world.deltas[1], 0.4)],
        OPTIONS,
    )
    assert bits(tensors_of(world.out)) == bits(dict(expected))


def test_wrong_deltas_instructs_and_recipes_are_refused(world: World, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tuned = {n: a + np.asarray(1, BF16) / 64 for n, a in tensors_of(world.base).items()}
    extract(world.base, write_model(tmp_path / "t9", tuned), other)
    same = shutil.copytree(world.instruct, tmp_path / "same")
    world.refused(GraftError, "this is the Instruct of the recipe, sha256:", world.recipe, same, world.deltas)
    world.refused(
        GraftError, "is not among the given folders; pass it with --delta", world.recipe, world.newer, world.deltas[:1]
    )
    world.refused(GraftError, "other: delta sha256:.* is not in", world.recipe, world.newer, [*world.deltas, other])
    world.refused(UnrelatedError, "stranger", world.recipe, world.stranger, world.deltas)
    world.refused(OntoBaseError, "the delta's own Base", world.recipe, world.base, world.deltas)
    recipe = json.loads(world.recipe.read_bytes())
    for number, (damage, message) in enumerate(
        [
            ({"format": 2}, "recipe format 2, expected 1"),
            ({"deltas": [{}]}, "no(t a)? recipe"),
            ({"merge": 3}, "options: merge: "),
        ]
    ):
        write_json_atomically(tmp_path / f"{number}.json", recipe | damage)
        world.refused(GraftError, message, tmp_path / f"{number}.json", world.newer, world.deltas)


def test_a_waiver_is_not_inherited(world: World, tmp_path: Path) -> None:
    """The waiver in the recipe was for another Instruct."""
    graft(world.stranger, [(world.deltas[0], 0.5)], tmp_path / "waived", Options(waivers=["unrelated"]))
    recipe = tmp_path / "waived" / "recipe.json"
    other = {n: a.astype(BF16) for n, a in noise(42, 0.02).items()}
    folder = write_model(tmp_path / "stranger2", other)
    world.refused(UnrelatedError, "stranger2", recipe, folder, world.deltas[:1])
    assert regraft(recipe, folder, world.deltas[:1], world.out, ["unrelated"])["waivers"] == ["unrelated"]
    assert regraft(recipe, world.newer, world.deltas[:1], world.out)["waivers"] == []


def test_deltas_come_from_the_recipes_store(world: World, tmp_path: Path) -> None:
    store = Store(uri=str(tmp_path / "store"))
    for delta in world.deltas:
        publish(delta, store)
    recipe = json.loads(world.recipe.read_bytes()) | {"store": store.model_dump()}
    write_json_atomically(tmp_path / "registered.json", recipe)
    carried = regraft(tmp_path / "registered.json", world.newer, world.deltas[:1], world.out)
    assert carried["digest"] == regraft(world.recipe, world.newer, world.deltas, world.out)["digest"]
    assert not list(world.out.parent.glob(".carried*"))
    # The model rebuilt from the store is the same one, with any rule and scales.
    rebuild(recipe, tmp_path / "rebuilt", world.instruct)
    assert open_checkpoint(tmp_path / "rebuilt").digest() == recipe["digest"]
    rebuild(carried | {"store": store.model_dump()}, tmp_path / "rebuilt", world.newer)
    assert open_checkpoint(tmp_path / "rebuilt").digest() == carried["digest"]


def test_the_old_verdict_is_not_reused(world: World, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for role in ("base", "instruct"):
        (work / "pair" / role).mkdir(parents=True)
    carried = regraft(world.recipe, world.newer, world.deltas, work / "grafted" / "shadow")
    for name in ("report.html", "dvc.lock"):
        (work / name).write_text("")
    shutil.copytree(world.deltas[0], work / "delta" / "shadow")
    verdict = {
        "format": 1,
        "candidate": "shadow_scaled",
        "decision": "promote",
        "reasons": [],
        "claims": [],
        "arms": {},
        "direct_control": True,
        "recipe_digest": json.loads(world.recipe.read_bytes())["digest"],
    }
    base = json.loads((world.deltas[0] / "delta.json").read_bytes())["base"]["digest"]
    pair = {"base": {"ref": "b", "digest": base}, "instruct": {"ref": "i", "digest": carried["instruct"]["digest"]}}
    write_json_atomically(work / "pair" / "pair.json", pair)
    write_json_atomically(work / "verdict.json", verdict)
    recipe = carried | {"deltas": [{"digest": open_delta(world.deltas[0]).digest, "scale": 1.0}]}
    write_json_atomically(work / "grafted" / "shadow" / "recipe.json", recipe)
    with pytest.raises(RegistryError, match="the judged model is sha256:"):
        Evidence(load_params(ROOT / "params.yaml"), work, work / "dvc.lock", ROOT / "params.yaml")


def test_the_verb_regrafts_and_receipt_reports_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shadowft(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["shadowft", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    words: list[object] = ["regraft", "--recipe", world.recipe, "--out", world.out]
    words += [word for delta in world.deltas for word in ("--delta", delta)]
    code, out, _ = shadowft(*words, "--instruct", world.newer, "--json")
    assert code == 0
    recipe = json.loads(out)
    assert recipe["digest"] == open_checkpoint(world.out).digest()
    code, out, err = shadowft(*words, "--instruct", world.instruct)
    assert (code, out) == (GraftError.exit_code, "")
    assert "the Instruct of the recipe" in err
    account = json.loads(shadowft("receipt", world.out, "--json")[1])
    assert account["merge"] == {"rule": "ties", "density": 0.3}
    assert (account["scale_for"], account["waivers"]) == ([["*down_proj*", 0.1]], [])
    assert account["regrafted_from"] == recipe["regrafted_from"]
    code, out, _ = shadowft("receipt", world.out)
    assert code == 0
    for text in (
        "merge ties density 0.3, scope ['*proj*'], dtype instruct",
        "  scale 0.1 for *down_proj*",
        f"regrafted from recipe {recipe['regrafted_from']}; needs its own verdict",
        "untouched, out of scope: ",
    ):
        assert text in out
    code, out, _ = shadowft("regraft", "--help")
    assert "Example: shadowft regraft --recipe" in " ".join(out.split())
