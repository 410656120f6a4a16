"""The engine `server` against a real small server: the same prompts, scores and digests as `hf`."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import Bench, evaluate, open_bench, open_engine
from shadowft_core.evaluate.engines import Deltas
from shadowft_core.evaluate.items import TaskScore
from shadowft_core.grafting import ONTO_BASE, Options, graft
from shadowft_core.params import Engine, Evaluate, Generation, Limits, Sweep
from shadowft_core.sweep import sweep
from tests.fixtures.evaluation import World, read_arm
from tests.fixtures.serving import served
from tests.servers.completions import Model

OPTIONS = Options("all", waivers=(ONTO_BASE,))
CLOSE = 1e-5  # nats per byte: float32 sums in another order


def hf(params: Evaluate) -> Evaluate:
    return params.model_copy(update={"engine": Engine(), "batch_size": 1})


@contextmanager
def opened(world: World, params: Evaluate, deltas: Deltas = ()) -> Iterator[tuple[Bench, Any]]:
    with (
        open_bench(world.instruct, world.data, params, params.domain, params.guards) as bench,
        open_engine(world.instruct, bench.tokenizer, params) as engine,
    ):
        engine.check(deltas, OPTIONS, bench.likelihood)
        with engine.arm(deltas, OPTIONS) as arm:
            yield bench, arm


def scores(world: World, params: Evaluate, deltas: Deltas = ()) -> tuple[str, dict[str, TaskScore]]:
    with opened(world, params, deltas) as (bench, arm):
        return arm.digest, bench.score(arm, "test")


def same_scores(one: dict[str, TaskScore], other: dict[str, TaskScore]) -> None:
    """Item by item: equal answers, ends, numbers of tokens, right or wrong; log-likelihoods within CLOSE."""
    assert one.keys() == other.keys()
    for name, score in one.items():
        for a, b in zip(score.items, other[name].items, strict=True):
            assert (a.item, a.prompt, a.finish, a.tokens) == (b.item, b.prompt, b.finish, b.tokens)
            assert a.score == pytest.approx(b.score, abs=CLOSE if name == "heldout" else 0)
            if name != "heldout":
                assert a.output == b.output


@pytest.mark.parametrize("token_ids", [True, False])
@pytest.mark.parametrize("scale", [0, 0.5, 1.5])
def test_the_server_scores_as_hf_does(world: World, low_rank: Path, scale: float, token_ids: bool) -> None:
    deltas = [(low_rank, scale)]
    with served(world, token_ids=token_ids) as (state, params):
        digest, found = scores(world, params, deltas)
        assert state.model.adapters == set()
    expected_digest, expected = scores(world, hf(params), deltas)
    assert digest == expected_digest
    same_scores(found, expected)
    if scale:
        _, untouched = scores(world, hf(params))
        assert [one.score for one in expected["heldout"].items] != [one.score for one in untouched["heldout"].items]


def test_answers_end_and_count_as_with_hf(world: World) -> None:
    """`say` ends with the end token; with a limit of one token, or a stop text inside an answer, otherwise."""
    with served(world) as (_, params):
        for changed in ({}, {"generation": Generation(max_tokens=1)}):
            asked = params.model_copy(update=changed)
            _, found = scores(world, asked.model_copy(update={"limits": Limits(cut=1)}))
            _, expected = scores(world, hf(asked).model_copy(update={"limits": Limits(cut=1)}))
            same_scores(found, expected)
            assert {one.finish for one in found["say"].items} == {"length" if changed else "stop"}


def with_bos(world: World, folder: Path) -> World:
    """The Instruct with a tokenizer that adds a BOS, and a chat template that writes one, too."""
    folder.mkdir()
    for file in world.instruct.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}
    begin = {"SpecialToken": {"id": "<pad>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<pad>": special},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<pad>"}))
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }} " + template.read_text())
    return World(world.root, folder, world.delta, world.tasks, world.data)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("system", [None, "say b"])
@pytest.mark.parametrize("shots", [0, 2])
def test_the_server_gets_the_token_ids_that_hf_feeds_its_model(
    world: World, tmp_path: Path, bos: bool, system: str | None, shots: int
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for file in filter(Path.is_file, world.tasks.iterdir()):
        text = file.read_text()
        if file.suffix == ".yaml" and file.stem in ("next", "choice"):
            text += f"num_fewshot: {shots}\nfewshot_split: test\n"
        (tasks / file.name).write_text(text)
    place = with_bos(world, tmp_path / "bos") if bos else world
    place = World(place.root, place.instruct, place.delta, tasks, place.data)
    changes = {"generation": Generation(system=system), "limit": 4, "limits": Limits(cut=1), "guards": ("choice",)}
    with served(place, context=None) as (state, settings):
        params = settings.model_copy(update=changes)
        with opened(place, params) as (bench, arm):
            state.asked.clear()  # of the question whether the server scores prompts
            bench.score(arm, "test")
            # hf does not feed the last token of a text that it scores
            sent = {tuple(body["prompt"][:-1] if body.get("echo") else body["prompt"]) for body in state.asked}
    fed = set()
    with opened(place, hf(params)) as (bench, arm):

        def record(_: Any, args: Any, kwargs: Any) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)[0]
            mask = kwargs.get("attention_mask")
            if len(ids) > 1:  # a later pass of a generation feeds one token
                fed.add(tuple(ids[mask[0].bool()].tolist() if mask is not None else ids.tolist()))

        arm.lm.model.register_forward_pre_hook(record, with_kwargs=True)
        bench.score(arm, "test")
    assert sent == fed
    assert len(sent) >= 12
    if bos:
        assert {ids.count(0) for ids in sent} == {1}


def test_both_stages_write_what_hf_would(
    world: World, low_rank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    graft(world.instruct, [(low_rank, 0.5)], tmp_path / "grafted", OPTIONS)
    chosen = Sweep(scales=(0, 0.5, 1), domain=("next_dev",), guards=("say_dev",))
    written, swept = {}, {}
    with served(world) as (state, params):
        for name, settings in (("server", params), ("hf", hf(params))):
            out = tmp_path / name
            evaluate(world.instruct, world.data, low_rank, tmp_path / "grafted", "shadow", settings, out)
            written[name] = {arm: read_arm(out / arm) for arm in ("shadow", "shadow_scaled")}
            sweep(world.instruct, low_rank, world.data, chosen, settings, out / "sweep.json")
            swept[name] = json.loads((out / "sweep.json").read_bytes())
        assert state.model.adapters == set()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert swept["server"] == swept["hf"]
    for arm, (about, items) in written["server"].items():
        other, rows = written["hf"][arm]
        assert about["model_digest"] == other["model_digest"]
        for found, expected in zip(items, rows, strict=True):
            assert found.pop("score") == pytest.approx(expected.pop("score"), abs=CLOSE)
            if found["task"] != "heldout":
                assert found == expected


def test_every_answer_reaches_the_hook(world: World) -> None:
    with served(world) as (_, params), opened(world, params) as (_, arm):
        from lm_eval.api.instance import Instance

        kept: list[tuple[str, Any, Any]] = []

        class Hook:
            def add_partial(self, kind: str, request: Any, answer: Any) -> None:
                kept.append((kind, request, answer))

        arm.lm.set_cache_hook(Hook())
        settings = {"until": ["<end>"], "max_gen_toks": 3}
        texts = [Instance("generate_until", {}, (f"<user> say {a} <end> <bot> ", settings), 0) for a in "abc"]
        pairs = [Instance("loglikelihood", {}, ("<user> say a <end> <bot> ", a), 0) for a in "abc"]
        answers = arm.lm.generate_until(texts), arm.lm.loglikelihood(pairs)
    assert sorted(map(repr, kept)) == sorted(
        repr((one.request_type, one.args, answer))
        for asked, given in zip((texts, pairs), answers, strict=True)
        for one, answer in zip(asked, given, strict=True)
    )
    assert [answer.finish for answer in answers[0]] == ["stop"] * 3
    assert [greedy for _, greedy in answers[1]] == [True, False, False]


def test_a_delta_that_is_no_adapter_is_refused_before_anything_is_asked(world: World, low_rank: Path) -> None:
    with served(world) as (state, params):
        with pytest.raises(EvaluationError, match=r"is not a LoRA .*; set evaluate\.engine\.server\.command"):
            scores(world, params, [(world.delta, 1.0)])
        assert state.asked == []
    with served(world, adapters=False) as (state, params):
        with pytest.raises(EvaluationError, match=r"loads no adapters at run time .*--enable-lora"):
            scores(world, params, [(low_rank, 1.0)])
        assert state.asked == []


class Deaf(Model):
    """Takes adapters and leaves them out, as vLLM does if its settings name none of their modules."""

    def load(self, name: str, folder: str) -> None:
        self.adapters.add(name)

    def unload(self, name: str) -> None:
        self.adapters.remove(name)

    def logits(self, ids: list[int], adapter: str) -> Any:
        kept, self.adapters = self.adapters, set()
        try:
            return super().logits(ids, adapter)
        finally:
            self.adapters = kept


def test_an_adapter_that_the_server_leaves_out_is_refused(world: World, low_rank: Path) -> None:
    """Its scores would be those of the Instruct."""
    model = Deaf(world.instruct)
    with served(world, model=model) as (_, params):
        with pytest.raises(
            EvaluationError, match=r"lora to the bit as without it, so the server leaves it out; correct"
        ):
            scores(world, params, [(low_rank, 1.0)])
        assert model.adapters == set()


@pytest.mark.parametrize("scale", [1e-12, 1e-7])
def test_an_adapter_may_be_too_small_to_show(world: World, low_rank: Path, scale: float) -> None:
    with served(world) as (state, params):
        scores(world, params, [(low_rank, scale)])
        assert state.model.adapters == set()
