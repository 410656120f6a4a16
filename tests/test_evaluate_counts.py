"""The counts beside a score, their limit, and rows that no arm can be asked."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate
from shadowft_core.evaluate.counts import DOUBTS, told
from shadowft_core.evaluate.items import Item, TaskScore
from shadowft_core.evaluate.questions import NO_REFERENCE
from shadowft_core.params import Limits
from tests.fixtures.evaluation import World, prepared, read_arm, rows, score_instruct, write_task


def options(folder: Path, items: list[tuple[str, str]], **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    write_task(folder, "odd", items)
    config = yaml.safe_load((folder / "odd.yaml").read_text())
    config["generation_kwargs"] |= changes
    (folder / "odd.yaml").write_text(yaml.safe_dump(config))
    return {"tasks": str(folder), "domain": ("odd",), "guards": ()}


def heldout(world: World, folder: Path, held: list[dict[str, Any]]) -> World:
    folder.mkdir()
    numbered = [row | {"source": f"rows.jsonl:{number}"} for number, row in enumerate(held, 1)]
    pq.write_table(pa.Table.from_pylist(numbered), folder / "test.parquet")
    return dataclasses.replace(world, data=folder)


def test_answers_are_counted(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of four answers, one is stopped at once, and one runs into the limit: its stop text does not come."""
    asked = options(tmp_path / "tasks", rows("say")[:4], until=["a", "<end>"])
    scores, items = score_instruct(world, tmp_path / "out", **asked)
    counts = {"copies": 0, "cut": 0, "unparsed": 0, "empty": 1, "unstopped": 0, "replaced_examples": 0}
    assert scores["tasks"]["odd"]["counts"] == counts
    assert {(item["finish"], item["tokens"]) for item in items} == {("stop", 1), ("stop", 2)}
    assert "instruct odd: of 4 items 1 empty" in capfd.readouterr().err


def test_a_task_that_is_not_generated_has_no_counts_of_answers(world: World, tmp_path: Path) -> None:
    scores, items = score_instruct(world, tmp_path / "out", domain=("choice",), guards=())
    assert scores["tasks"]["choice"]["counts"] == {"copies": 0, "replaced_examples": 0}
    assert {(item["finish"], item["tokens"], item["parsed"]) for item in items} == {(None, None, None)}


def test_more_cut_answers_than_allowed_are_refused(world: World, tmp_path: Path) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:4], max_gen_toks=1)
    with pytest.raises(
        EvaluationError,
        match=r"odd: 4 of 4 answers were cut .*limits\.cut allows 50%: raise max_gen_toks .* the limit$",
    ):
        score_instruct(world, tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_empty_answers_are_refused(world: World, tmp_path: Path) -> None:
    """Every answer begins with its stop text."""
    asked = options(tmp_path / "tasks", rows("say")[:4], until=list("abcdefgh"))
    with pytest.raises(EvaluationError, match=r"4 of 4 answers are empty, evaluate.limits.empty allows 50%: check the"):
        score_instruct(world, tmp_path / "out", **asked)


def test_unparsed_answers_are_refused_with_the_other_filters(world: World, tmp_path: Path) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:4])
    config = yaml.safe_load((tmp_path / "tasks/odd.yaml").read_text())
    first = [{"function": "take_first"}]
    strict = [{"function": "regex", "regex_pattern": "#### ([a-z]+)"}, *first]
    config["filter_list"] = [{"name": "strict", "filter": strict}, {"name": "any", "filter": first}]
    (tmp_path / "tasks/odd.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        EvaluationError,
        match=r"4 of 4 answers hold nothing .*limits\.unparsed allows 90%: .*evaluate\.metrics \(any/exact_match\)",
    ):
        score_instruct(world, tmp_path / "out", **asked)
    task = score_instruct(world, tmp_path / "more", **asked, limits={"unparsed": 1})[0]["tasks"]["odd"]
    assert (task["counts"]["unparsed"], task["flags"]) == (4, ["format"])


@pytest.mark.parametrize(("kind", "answers"), [
    ("cut", {"finish": "length"}), ("empty", {"output": " \n"}), ("unparsed", {"parsed": False}),
    ("unstopped", {"finish": None}),
])  # fmt: skip
def test_every_kind_has_a_limit(kind: str, answers: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    items = [
        Item(str(at), 0.0, "p", **{"output": "o", "finish": "stop"} | (answers if at < 3 else {})) for at in range(4)
    ]
    found = TaskScore("guard", "m", tuple(items), generated=True)
    assert told("arm", found, Limits(**{kind: 0.75}), refuse=True).flags == ()
    limits = Limits(**{kind: 0.74})
    assert told("arm", found, limits, refuse=False).flags == (kind,)
    assert (
        f"warning: arm: 3 of 4 answers {DOUBTS[kind][0]}, evaluate.limits.{kind} allows 74%" in capfd.readouterr().err
    )
    with pytest.raises(EvaluationError, match=rf"arm: 3 of 4 .*limits\.{kind} allows 74%.*or raise the limit$"):
        told("arm", found, limits, refuse=True)
    choices = TaskScore("guard", "m", tuple(items))
    assert told("arm", choices, limits, refuse=True).flags == (), "nothing was generated"


def test_the_limit_is_a_share_of_the_items(world: World, tmp_path: Path) -> None:
    """With `a` as stop text, one of four answers of one token is not cut."""
    asked = options(tmp_path / "tasks", rows("say")[:4], max_gen_toks=1, until=["a"])
    task = score_instruct(world, tmp_path / "out", **asked, limits={"cut": 0.75})[0]["tasks"]["odd"]
    assert (task["counts"]["cut"], task["flags"]) == (3, [])
    with pytest.raises(EvaluationError, match=r"3 of 4 answers were cut"):
        score_instruct(world, tmp_path / "more", **asked, limits={"cut": 0.74})


def test_a_limit_is_a_share() -> None:
    with pytest.raises(ValueError, match="less than or equal to 1"):
        Limits(cut=1.1)


def test_other_arms_are_flagged(world: World, half: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = world.params(**options(tmp_path / "tasks", rows("say")[:4], max_gen_toks=1))
    evaluate(world.instruct, world.data, world.delta, half, "shadow", asked, tmp_path / "out")
    for arm in ("shadow", "shadow_scaled"):
        task = read_arm(tmp_path / "out" / arm)[0]["tasks"]["odd"]
        assert (task["counts"]["cut"], task["flags"]) == (4, ["cut"])
    assert "warning: shadow odd: 4 of 4 answers were cut at the token limit" in capfd.readouterr().err


def test_a_summary_counts_copies_and_kinds() -> None:
    def item(name: str, score: float, **more: Any) -> Item:
        return Item(name, score, "p", **{"output": "o", "finish": "stop", **more})

    items = (
        item("a", 1.0, copies=3, slice="easy"),
        item("b", 0.0, finish="length", slice="easy", parsed=False),
        item("c", 0.5, output=" \n", slice="hard"),
        item("d", 0.0, finish=None),
    )
    found = TaskScore("guard", "m", items, generated=True, left_out={"why": [f"f:{n}" for n in range(30)]}).summary()
    assert (found["n"], found["mean"]) == (4, 0.375)
    assert {kind: found["counts"][kind] for kind in ("copies", "cut", "unparsed", "empty", "unstopped")} == {
        "copies": 2, "cut": 1, "unparsed": 1, "empty": 1, "unstopped": 1,
    }  # fmt: skip
    assert found["slices"]["easy"] | {"unparsed": 1} == {
        "n": 2, "mean": 0.5, "copies": 2, "cut": 1, "unparsed": 1, "empty": 0, "unstopped": 0,
    }  # fmt: skip
    assert found["slices"].keys() == {"easy", "hard"}
    assert found["left_out"]["why"]["rows"] == 30
    assert len(found["left_out"]["why"]["named"]) == 20


@pytest.mark.parametrize(("words", "out"), [(24, 0), (25, 1)])
def test_a_prompt_fits_if_its_answer_does(world: World, tmp_path: Path, words: int, out: int) -> None:
    """32 tokens of context: <user>, the words, <end>, <bot>, and five of the answer."""
    items = [*rows("say")[:3], (" ".join(["say", *["a"] * (words - 1)]), "a")]
    asked = options(tmp_path / "tasks", items, max_gen_toks=5)
    scores, answered = score_instruct(world, tmp_path / "out", **asked)
    assert (scores["tasks"]["odd"]["n"], len(answered)) == (4 - out, 4 - out)
    expected = {"longer than the context": {"rows": 1, "named": ["document 3"]}} if out else {}
    assert scores["tasks"]["odd"]["left_out"] == expected


def test_all_arms_leave_out_the_same_rows(world: World, half: Path, tmp_path: Path) -> None:
    items = [("say a " * 20, "a"), *rows("say")[:3]]
    asked = world.params(**options(tmp_path / "tasks", items))
    evaluate(world.instruct, world.data, world.delta, half, "shadow", asked, tmp_path / "out")
    evaluate(world.instruct, world.data, None, None, "shadow", asked, tmp_path / "instruct")
    arms = [read_arm(tmp_path / place) for place in ("out/shadow", "out/shadow_scaled", "instruct/instruct")]
    assert {tuple(item["item"] for item in answered) for _, answered in arms} == {
        tuple(item["item"] for item in arms[0][1])
    }
    assert [scores["tasks"]["odd"]["left_out"]["longer than the context"]["named"] for scores, _ in arms] == [
        ["document 0"]
    ] * 3


def test_few_shot_examples_can_make_a_prompt_too_long(world: World, tmp_path: Path) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:13])
    config = yaml.safe_load((tmp_path / "tasks/odd.yaml").read_text()) | {"num_fewshot": 8}
    (tmp_path / "tasks/odd.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(EvaluationError, match=r"13 of 13 rows are left out .*32 tokens.*or show fewer examples"):
        score_instruct(world, tmp_path / "out", **asked)


def test_held_out_rows_are_left_out_by_file_and_row(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held = [prepared(f"say {a}", f"{a} b") for a in "abc"]
    held[1:1] = [prepared("say a", "a " * 40), prepared("say b", " "), prepared("say d <end> e", "f")]
    world = heldout(world, tmp_path / "data", held)
    scores, items = score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())
    assert len(items) == scores["tasks"]["heldout"]["n"] == 3
    named = {reason: part["named"] for reason, part in scores["tasks"]["heldout"]["left_out"].items()}
    assert named.pop("longer than the context") == ["rows.jsonl:2"]
    assert named.pop("control token <end> in the text") == ["rows.jsonl:4"]
    assert list(named.values()) == [["rows.jsonl:3"]]
    assert (
        "task heldout: left out of every arm, 1 rows: longer than the context (rows.jsonl:2)" in capfd.readouterr().err
    )


@pytest.mark.parametrize("empty", [2, 4])
def test_empty_replies_may_be_half_of_the_held_out_rows(world: World, tmp_path: Path, empty: int) -> None:
    held = [prepared(f"say {a}", f"{a} b") for a in "abc"] + [prepared(f"say {a}", " ") for a in "defg"[:empty]]
    world = heldout(world, tmp_path / "data", held)
    if empty == 2:
        scores, _ = score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())
        assert scores["tasks"]["heldout"]["left_out"]["the reply is empty"]["rows"] == empty
    else:
        with pytest.raises(EvaluationError, match=r"task heldout: 4 of 7 rows are left out \(4 the reply is empty"):
            score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())


@pytest.mark.parametrize(("letters", "out"), [(27, 0), (28, 1)])
def test_the_last_token_of_a_reply_is_scored_not_read(world: World, tmp_path: Path, letters: int, out: int) -> None:
    """32 tokens of context and one more: <user>, two words, <end>, <bot>, two letters, and the rest of the reply."""
    held = [prepared(f"say {a}", f"{a} b") for a in "abc"] + [prepared("say d", " ".join("d" * (letters + 1)))]
    world = heldout(world, tmp_path / "data", held)
    scores, _ = score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())
    assert scores["tasks"]["heldout"]["n"] == 4 - out


def test_mostly_overlong_held_out_rows_are_refused(world: World, tmp_path: Path) -> None:
    held = [prepared("say a", "a " * 40), prepared("say b", "b " * 40), prepared("say c", "c d")]
    world = heldout(world, tmp_path / "data", held)
    with pytest.raises(
        EvaluationError, match=r"task heldout: 2 of 3 rows .*such as rows.jsonl:1; .*at most 50% may be"
    ):
        score_instruct(world, tmp_path / "out", domain=("heldout",), guards=())


@pytest.mark.parametrize("missing", ["", " ", None])
@pytest.mark.parametrize("target", ["a", "{{a}}"])
def test_a_row_without_a_reference_is_left_out(world: World, tmp_path: Path, missing: Any, target: str) -> None:
    """Every arm would be wrong there, whatever it answers."""
    asked = options(tmp_path / "tasks", [*rows("say")[:3], ("say x", missing)])
    file = tmp_path / "tasks" / "odd.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"doc_to_target": target}))
    scores, _ = score_instruct(world, tmp_path / "out", **asked)
    task = scores["tasks"]["odd"]
    assert (task["n"], task["mean"]) == (3, 1.0)
    assert task["left_out"] == {NO_REFERENCE: {"rows": 1, "named": ["document 3"]}}


def test_rows_with_the_label_of_unlabelled_ones(world: World, tmp_path: Path) -> None:
    asked = options(tmp_path / "tasks", [("say a", -1), ("say b", 1), ("say c", 2)])  # type: ignore[list-item]
    file = tmp_path / "tasks" / "odd.yaml"
    config = yaml.safe_load(file.read_text()) | {"output_type": "multiple_choice", "doc_to_choice": ["a", "b", "c"]}
    file.write_text(yaml.safe_dump({k: v for k, v in config.items() if k not in ("generation_kwargs", "metric_list")}))
    scores, _ = score_instruct(world, tmp_path / "out", **asked)
    assert (scores["tasks"]["odd"]["n"], scores["tasks"]["odd"]["mean"]) == (2, 1.0)
    assert scores["tasks"]["odd"]["left_out"][NO_REFERENCE]["named"] == ["document 0"]


@pytest.mark.parametrize(("until", "told"), [(None, True), ([], False), (["\n\n"], False)])
def test_a_stop_text_that_the_task_does_not_name_is_told(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], until: list[str] | None, told: bool
) -> None:
    asked = options(tmp_path / "tasks", rows("say")[:2], until=until)
    if until is None:
        file = tmp_path / "tasks" / "odd.yaml"
        config = yaml.safe_load(file.read_text())
        del config["generation_kwargs"]["until"]
        file.write_text(yaml.safe_dump(config))
    score_instruct(world, tmp_path / "out", **asked)
    said = r"task odd: generation_kwargs names no `until`, so answers end at ['\n\n'], as in the harness"
    assert (said in capfd.readouterr().err) == told


def test_each_split_has_its_own_rows_left_out(world: World, tmp_path: Path) -> None:
    held = {
        "test": [prepared(f"say {a}", f"{a} b") for a in "abc"],
        "dev": [*(prepared(f"say {a}", f"{a} b") for a in "def"), prepared("say g <end> h", "i")],
    }
    world = heldout(world, tmp_path / "data", held["test"])
    pq.write_table(pa.Table.from_pylist(held["dev"]), tmp_path / "data/dev.parquet")
    scores, _ = score_instruct(world, tmp_path / "out", domain=("heldout",), guards=("heldout_dev",))
    found = {name: (task["n"], [*task["left_out"]]) for name, task in scores["tasks"].items()}
    assert found == {"heldout": (3, []), "heldout_dev": (3, ["control token <end> in the text"])}


@pytest.mark.parametrize("short", [1, 2])
def test_half_of_the_rows_may_be_left_out(world: World, tmp_path: Path, short: int) -> None:
    asked = options(tmp_path / "tasks", [*rows("say")[:short], ("say " + "a " * 40, "a"), ("say " + "b " * 40, "b")])
    if short == 2:
        assert score_instruct(world, tmp_path / "out", **asked)[0]["tasks"]["odd"]["n"] == 2
    else:
        with pytest.raises(EvaluationError, match=r"2 of 3 rows are left out"):
            score_instruct(world, tmp_path / "out", **asked)


def test_a_row_with_nothing_to_score_is_left_out(world: World, tmp_path: Path) -> None:
    asked = options(tmp_path / "tasks", [*rows("say")[:3], ("say d", "")])
    config = yaml.safe_load((tmp_path / "tasks/odd.yaml").read_text())
    config |= {"output_type": "loglikelihood", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    (tmp_path / "tasks/odd.yaml").write_text(yaml.safe_dump(config | {"generation_kwargs": None}))
    task = score_instruct(world, tmp_path / "out", **asked)[0]["tasks"]["odd"]
    assert (task["n"], task["mean"]) == (3, 1)
    assert task["left_out"] == {"the reply is empty": {"rows": 1, "named": ["document 3"]}}
