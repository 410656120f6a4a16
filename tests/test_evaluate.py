"""Evaluate with the real harness and a tiny model that learned a skill."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate, load_folder, load_grafted, open_bench, open_versions
from shadowft_core.evaluate.engines.hf import Hf, Loaded
from shadowft_core.files import canonical_json
from shadowft_core.grafting import Options, graft
from shadowft_core.weights import open_checkpoint
from tests.fixtures.evaluation import LETTERS, World, read_arm, score_instruct


def test_the_instruct_scores_high_where_it_was_trained(world: World, tmp_path: Path) -> None:
    scores, items = score_instruct(world, tmp_path / "out")
    say = {"role": "guard", "metric": "exact_match", "n": 13, "mean": 1.0}
    assert scores["tasks"]["say"].items() >= say.items()
    assert scores["tasks"]["next"]["role"] == "domain"
    assert scores["tasks"]["next"]["mean"] < 0.5
    assert (scores["arm"], scores["scale"], scores["label"]) == ("instruct", 0, "")
    assert scores["model_digest"] == open_checkpoint(world.instruct).digest()
    assert (tmp_path / "out/instruct/scores.json").read_bytes() == canonical_json(scores)
    assert items == sorted(items, key=lambda item: (item["task"], item["item"]))
    assert {item["output"].strip() for item in items if item["task"] == "say"} == set(LETTERS[:13])
    for task, summary in scores["tasks"].items():
        values = [item["score"] for item in items if item["task"] == task]
        assert (len(values), sum(values) / len(values)) == (summary["n"], pytest.approx(summary["mean"]))


def test_the_label_names_the_models_that_were_used(world: World, half: Path, tmp_path: Path) -> None:
    """The label of the Base belongs to an arm only if the delta was taken from the Base, not from the Instruct."""
    instruct = shutil.copytree(world.instruct, tmp_path / "pair" / "instruct")
    params = world.params(domain=("heldout",), guards=())
    for tuned, label in ((open_checkpoint(instruct).digest(), "tiny"), ("sha256:0", "tiny; tiny base")):
        sides = {
            "base": {"ref": "b", "digest": "sha256:1", "label": "tiny base"},
            "instruct": {"ref": "i", "digest": tuned, "label": "tiny"},
        }
        (tmp_path / "pair" / "pair.json").write_text(json.dumps(sides))
        evaluate(instruct, world.data, world.delta, half, "shadow", params, tmp_path / "out")
        assert read_arm(tmp_path / "out" / "shadow")[0]["label"] == label


def test_the_same_model_gives_the_same_bytes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"domain": ("next", "heldout"), "guards": ("say", "choice")}
    for out in ("one", "two"):
        monkeypatch.setenv("SHADOWFT_CACHE", str(tmp_path / "cache" / out))  # the second asks the model again
        score_instruct(world, tmp_path / out, **tasks)
    for name in ("scores.json", "items.jsonl"):
        assert (tmp_path / "one/instruct" / name).read_bytes() == (tmp_path / "two/instruct" / name).read_bytes()


def test_the_batch_size_changes_no_score(world: World, tmp_path: Path) -> None:
    assert score_instruct(world, tmp_path / "a", batch_size=64) == score_instruct(world, tmp_path / "b", batch_size=1)


def test_all_arms_get_the_same_items(world: World, half: Path, tmp_path: Path) -> None:
    instruct, plain = score_instruct(world, tmp_path / "instruct")
    evaluate(world.instruct, world.data, world.delta, half, "shadow", world.params(), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["shadow", "shadow_scaled"]
    for arm, scale in {"shadow": 1, "shadow_scaled": 0.5}.items():
        scores, items = read_arm(tmp_path / "out" / arm)
        assert (scores["arm"], scores["scale"]) == (arm, scale)
        assert scores["template_digest"] == instruct["template_digest"]
        assert [(i["task"], i["item"]) for i in items] == [(i["task"], i["item"]) for i in plain]
    assert scores["model_digest"] == open_checkpoint(half).digest() != instruct["model_digest"]
    assert read_arm(tmp_path / "out/shadow")[0]["tasks"]["next"]["mean"] == 1.0


def test_an_arm_is_judged_by_its_own_answers(world: World, half: Path) -> None:
    """The arms of one run share its requests, which hold the answers of the arm that was asked last."""
    models = {name: load_folder(folder) for name, folder in (("instruct", world.instruct), ("half", half))}
    with open_bench(world.instruct, world.data, world.params(), ("next", "heldout"), ("say", "choice")) as bench:
        engine = Hf(world.instruct, bench.tokenizer, 64)
        first, other, again = (
            bench.score(Loaded(f"sha256:{number} {name}", engine.lm(models[name])), name)  # so that each is asked
            for number, name in enumerate(("instruct", "half", "instruct"))
        )
    assert first == again
    assert all(first[task].items != other[task].items for task in ("next", "heldout"))


def test_a_log_likelihood_that_is_no_number_ends_the_arm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for an engine that does not look at its numbers itself."""
    with open_bench(world.instruct, world.data, world.params(), ("heldout",), ()) as bench:
        arm = Loaded("sha256:0", Hf(world.instruct, bench.tokenizer, 64).lm(load_folder(world.instruct)))
        nothing = [(float("nan"), False)]
        monkeypatch.setattr(arm.lm, "_loglikelihood_tokens", lambda asked, **_: nothing * len(asked))
        with pytest.raises(EvaluationError, match=r"task heldout: the log-likelihood of item sha256:\w+ is nan"):
            bench.score(arm, "instruct")


def test_the_model_grafted_in_memory_is_the_one_on_disk(world: World, half: Path) -> None:
    import torch

    on_disk = load_folder(half)
    in_memory, digest = load_grafted(world.instruct, [(world.delta, 0.5)], Options("all", waivers=["onto-base"]))
    assert digest == open_checkpoint(half).digest()
    assert on_disk.generation_config.to_dict() == in_memory.generation_config.to_dict()
    pairs = zip(on_disk.state_dict().items(), in_memory.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    with open_bench(world.instruct, world.data, world.params(), ("next", "heldout"), ("say",)) as bench:
        engine = Hf(world.instruct, bench.tokenizer, 64)
        disk, memory = (Loaded(digest, engine.lm(model)) for model in (on_disk, in_memory))
        assert bench.score(disk, "disk") == bench.score(memory, "memory")


def test_a_champion_of_several_deltas_has_no_scale_of_its_own(world: World, low_rank: Path, tmp_path: Path) -> None:
    deltas = [(world.delta, 0.5), (low_rank, 0.25)]
    recipe = graft(world.instruct, deltas, tmp_path / "merged", Options(waivers=["onto-base"]))
    params = world.params(domain=("heldout",), guards=())
    wrong = recipe | {"digest": "sha256:0"}
    with open_versions(world.instruct, world.data, params, 1) as versions:
        versions.write(tmp_path / "out", "champion", deltas, recipe, 3)
        with pytest.raises(
            EvaluationError, match=r"version 3: its recipe gives the model sha256:.*, but records sha256:0"
        ):
            versions.write(tmp_path / "other", "champion", deltas, wrong, 3)
    scores, _ = read_arm(tmp_path / "out/champion")
    assert (scores["scale"], scores["version"], scores["model_digest"]) == (None, 3, recipe["digest"])
    assert not (tmp_path / "other").exists()


def test_scale_1_is_scored_once(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graft(world.instruct, [(world.delta, 1.0)], tmp_path / "whole", Options(waivers=["onto-base"]))
    evaluate(world.instruct, world.data, world.delta, tmp_path / "whole", "direct", world.params(), tmp_path / "out")
    printed = capfd.readouterr().err
    assert "direct next 13/13" in printed
    assert "scaled" not in printed
    (one, items), (other, others) = (read_arm(tmp_path / "out" / arm) for arm in ("direct", "direct_scaled"))
    assert items == others
    assert one == {**other, "arm": "direct"}


def test_loglikelihood_is_nats_per_byte_of_the_reply(world: World, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    scores, items = score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())
    assert scores["tasks"]["heldout"]["metric"] == "logprob_per_byte"
    tokenizer, model = AutoTokenizer.from_pretrained(world.instruct), load_folder(world.instruct)
    expected = []
    for prompt, reply in zip("abcde", "fghij", strict=True):
        ids = torch.tensor([tokenizer.encode(f"<user> say {prompt} <end> <bot> {prompt} {reply}")])
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, 4:6]
        expected.append(logprobs.gather(1, ids[0, 5:7, None]).sum().item() / 3)  # "a f" is three bytes
    assert sorted(item["score"] for item in items) == pytest.approx(sorted(expected), abs=1e-6)


def test_multiple_choice_takes_accuracy_and_shows_the_choice(world: World, tmp_path: Path) -> None:
    scores, items = score_instruct(world, tmp_path / "out", domain=("choice",), guards=(), limit=3)
    expected = {"role": "domain", "metric": "acc", "n": 3, "mean": 1.0}
    assert scores["tasks"]["choice"].items() >= expected.items()
    assert sorted(item["output"] for item in items) == ["a", "b", "c"]


def test_equal_items_count_once(world: World, tmp_path: Path) -> None:
    scores, items = score_instruct(world, tmp_path / "out", domain=("twins",))
    twins = [item for item in items if item["task"] == "twins"]
    assert [item["copies"] for item in twins] == [2, 2]
    assert not any("#" in item["item"] for item in twins)
    assert (scores["tasks"]["twins"]["n"], scores["tasks"]["twins"]["counts"]["copies"]) == (2, 2)


def test_evaluate_leaves_no_temporary_files(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    cache = Path(datasets.config.HF_DATASETS_CACHE)
    before = {*cache.rglob("*")}, {*world.tasks.rglob("*.json*")}, {*world.data.rglob("*")}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    score_instruct(world, tmp_path / "out", domain=("next", "heldout"))
    assert [*scratch.iterdir()] == []
    assert before == ({*cache.rglob("*")}, {*world.tasks.rglob("*.json*")}, {*world.data.rglob("*")})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "scratch"]
