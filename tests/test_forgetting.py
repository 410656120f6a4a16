"""What an arm lost and won against another: counted by hand, and on real answers of a tiny model."""

import json
from pathlib import Path

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate
from shadowft_core.forgetting import EPSILON, ledger
from shadowft_core.forgetting.drift import drift, first_word, script
from shadowft_core.forgetting.text import visible
from tests.fixtures.answers import scored, write_answers
from tests.fixtures.evaluation import World, score_instruct


def test_flips_are_counted_by_hand(tmp_path: Path) -> None:
    before = write_answers(tmp_path / "before", {"t": scored(1, 1, 1, 1, 0, 0, 0, 1)})
    after = write_answers(tmp_path / "after", {"t": scored(0, 0, 0, 1, 1, 0, 0, 1)})
    found = ledger(before, after)["tasks"]["t"]
    assert (found["n"], found["lost"], found["won"], found["net"]) == (8, 3, 1, -2)
    assert found["p"] == pytest.approx(2 * (1 + 4) / 2**4)  # of 4 flips, 3 or more on one side, either way
    assert found["mean"] == {"reference": 5 / 8, "arm": 3 / 8}
    assert (found["right_or_wrong"], found["epsilon"], found["clusters"]) == (True, 0, 8)
    back = ledger(after, before)["tasks"]["t"]
    assert (back["lost"], back["won"], back["p"]) == (1, 3, found["p"])


def test_without_flips_p_is_1(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "one", {"t": scored(1, 0)})
    found = ledger(one, write_answers(tmp_path / "other", {"t": scored(1, 0)}))["total"]
    assert found == {"n": 2, "lost": 0, "won": 0, "net": 0, "p": 1.0}


def test_ten_losses_alone_are_significant(tmp_path: Path) -> None:
    before = write_answers(tmp_path / "before", {"t": scored(*[1] * 12)})
    after = write_answers(tmp_path / "after", {"t": scored(*[0] * 10, 1, 1)})
    assert ledger(before, after)["total"]["p"] == pytest.approx(2 / 2**10)


def test_a_score_in_between_counts_beyond_epsilon(tmp_path: Path) -> None:
    before = write_answers(tmp_path / "before", {"t": scored(-1.0, -1.0, -1.0, -1.0)})
    moved = (-1.0 - EPSILON / 2, -1.0 - 2 * EPSILON, -1.0 - 1, -1.0 + 2 * EPSILON)
    found = ledger(before, write_answers(tmp_path / "after", {"t": scored(*moved)}))["tasks"]["t"]
    assert (found["lost"], found["won"], found["epsilon"]) == (2, 1, EPSILON)
    assert [round(row["scores"]["arm"], 2) for row in found["examples"]["lost"]] == [-2.0, -1.02]  # biggest first


def test_examples_are_limited_and_of_one_kind(tmp_path: Path) -> None:
    before = write_answers(tmp_path / "before", {"t": scored(1, 1, 1, 0, 0)})
    after = write_answers(tmp_path / "after", {"t": scored(0, 0, 0, 1, 1, output="changed")})
    both = ledger(before, after, examples=2)["tasks"]["t"]["examples"]
    assert [len(both[kind]) for kind in ("lost", "won")] == [2, 2]
    shown = both["lost"][0]
    assert shown["prompt"].endswith("?")
    assert shown["outputs"]["reference"].startswith("answer")
    assert (shown["outputs"]["arm"], shown["scores"]) == ("changed", {"reference": 1, "arm": 0})
    lost = ledger(before, after, examples=2, only="lost")["tasks"]["t"]
    assert (len(lost["examples"]["lost"]), lost["examples"]["won"], lost["won"]) == (2, [], 2)


def test_items_of_one_cluster_are_one_observation(tmp_path: Path) -> None:
    """Ten questions about one passage that all flip are one piece of evidence."""
    before = write_answers(tmp_path / "before", {"t": scored(*[1] * 10, cluster="passage")})
    after = write_answers(tmp_path / "after", {"t": scored(*[0] * 10, cluster="passage")})
    found = ledger(before, after)["tasks"]["t"]
    assert (found["lost"], found["clusters"], found["p"]) == (10, 1, 1.0)


def test_lengths_ends_and_totals(tmp_path: Path) -> None:
    fields = [("stop", 4, True, "Yes."), ("stop", 6, True, "No."), ("length", 20, False, "")]
    before = [{"score": 1, "finish": "stop", "tokens": 10, "parsed": True, "output": "Yes."}] * 3
    after = [{"score": 0, "finish": f, "tokens": n, "parsed": p, "output": o} for f, n, p, o in fields]
    one = write_answers(tmp_path / "one", {"a": before, "b": scored(1, 0)})
    two = write_answers(tmp_path / "two", {"a": after, "b": scored(1, 1)})
    found = ledger(one, two)
    task = found["tasks"]["a"]
    assert task["length"] == {"answers": 3, "reference": 10, "arm": 10, "mean_change": 0, "median_change": -4}
    third = pytest.approx(1 / 3)
    for end in ("cut", "unparsed", "empty"):
        assert task["answers"][end] == {"reference": 0, "arm": third}
    two_of_three = {"kept": 0, "reference": 0, "arm": 1}
    bold = [{"score": 1, "finish": "stop", "output": text} for text in ("**Yes.**", "No.")]
    one_b, two_b = (
        write_answers(tmp_path / name, {"a": [row]}) for name, row in zip("cd", reversed(bold), strict=True)
    )
    assert ledger(one_b, two_b)["tasks"]["a"]["drift"]["bold"] == two_of_three
    assert found["roles"]["domain"] == found["total"]
    assert (found["total"]["lost"], found["total"]["won"], found["total"]["n"]) == (3, 1, 5)


def test_a_folder_of_an_older_version_is_not_recorded(tmp_path: Path) -> None:
    new = write_answers(tmp_path / "new", {"t": scored(1, finish="stop", tokens=3)}, generation={"max_tokens": 3})
    found = ledger(write_answers(tmp_path / "old", {"t": scored(1)}), new)
    assert found["tasks"]["t"]["answers"]["cut"] == {"reference": None, "arm": 0}
    assert found["tasks"]["t"]["length"] is None
    assert found["tasks"]["t"]["drift"] is None
    assert found["notes"] == [
        "old does not record its generation settings",
        "old does not record how its answers ended",
    ]


def test_flips_of_each_slice(tmp_path: Path) -> None:
    def items(*scores: float) -> list[dict[str, object]]:
        return [{"score": score, "slice": part} for score, part in zip(scores, "aabb", strict=True)]

    one = write_answers(tmp_path / "one", {"t": items(1, 1, 0, 1)})
    found = ledger(one, write_answers(tmp_path / "two", {"t": items(0, 0, 1, 1)}))["tasks"]["t"]["slices"]
    assert found["a"] == {"n": 2, "lost": 2, "won": 0, "net": -2, "p": 0.5}
    assert found["b"] == {"n": 2, "lost": 0, "won": 1, "net": 1, "p": 1.0}
    older = write_answers(tmp_path / "older", {"t": scored(1, 1, 0, 1)})  # from before the task file named a slice
    assert ledger(older, tmp_path / "two")["tasks"]["t"]["slices"] == {"a": found["a"], "b": found["b"]}


def test_tasks_of_a_group_are_counted_together(tmp_path: Path) -> None:
    folders = []
    for name, scores in {"one": (1, 1), "two": (0, 1)}.items():
        folders.append(write_answers(tmp_path / name, {"g_a": scored(*scores), "g_b": scored(*scores), "t": scored(1)}))
        head = json.loads((folders[-1] / "scores.json").read_bytes())
        for task, about in head["tasks"].items():
            about["group"] = task.partition("_")[0]
        (folders[-1] / "scores.json").write_text(json.dumps(head))
    assert ledger(*folders)["groups"] == {"g": {"n": 4, "lost": 2, "won": 0, "net": -2, "p": 0.5}}


def test_copies_in_a_folder_of_an_older_version_are_one_item(tmp_path: Path) -> None:
    copies = [{"item": "sha256:a"}, {"item": "sha256:a#1"}, {"item": "sha256:b"}]
    scores = {"before": (1, 1, 1), "after": (0, 0, 1)}
    one, two = (
        write_answers(tmp_path / name, {"t": [c | {"score": s} for c, s in zip(copies, of, strict=True)]})
        for name, of in scores.items()
    )
    found = ledger(one, two)["tasks"]["t"]
    assert (found["n"], found["lost"], len(found["examples"]["lost"])) == (2, 1, 1)


def test_what_is_not_generated_has_no_length(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "one", {"t": scored(1, finish=None)})
    found = ledger(one, write_answers(tmp_path / "two", {"t": scored(1, finish=None)}))["tasks"]["t"]
    assert (found["length"], found["answers"], found["drift"]) == (None, None, None)


PAIRS = [
    ("Sure, it is 4.", "sure!\n- it\n- is 4"),
    ("Answer: \\boxed{4}", "The answer is **4**"),
    ("```python\nx = 1\n```", "```\nx = 1\n```"),
    ("Привет", "Hello"),
]


def test_drift_by_hand() -> None:
    found = drift(PAIRS)
    assert (found["answers"], found["shortened"]) == (4, 0)
    assert found["start"] == {"kept": 1 / 4}  # sure
    assert found["script"] == {"kept": 3 / 4}
    assert found["list"] == {"kept": 3 / 4, "reference": 0, "arm": 1 / 4}
    assert found["bold"] == {"kept": 3 / 4, "reference": 0, "arm": 1 / 4}
    assert found["boxed"] == {"kept": 3 / 4, "reference": 1 / 4, "arm": 0}
    assert found["fence"] == {"kept": 1, "reference": 1 / 4, "arm": 1 / 4}


def test_a_shortened_answer_has_no_known_form() -> None:
    found = drift([*PAIRS, ("x" * 2000, "y")])
    assert (found["answers"], found["shortened"]) == (4, 1)
    assert drift([("x" * 2000, "y")])["start"] == {"kept": None}


@pytest.mark.parametrize(
    ("text", "word", "writing"),
    [
        ("**Sure!** ok", "sure", "LATIN"),
        ("", "", ""),
        ("!?", "!?", ""),
        ("日本語です", "日本語です", "JAPANESE"),
        ("中文 a", "中文", "CJK"),
        ("42 да", "42", "CYRILLIC"),
    ],
)
def test_features_of_a_text(text: str, word: str, writing: str) -> None:
    assert (first_word(text), script(text)) == (word, writing)


def test_text_without_shape_is_shown_by_its_code() -> None:
    assert visible("a\u202eb\x00\x1b[2J\u200b\n\tc é 漢") == "a<U+202E>b<U+0000><U+001B>[2J<U+200B>\n\tc é 漢"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template_digest": "sha256:other"}, ["template_digest is sha256:other and sha256:template", "same params"]),
        ({"generation": {"max_tokens": 9}}, ['"max_tokens": 9', '"max_tokens": 3', "same params"]),
    ],
)
def test_arms_with_other_settings_are_refused(tmp_path: Path, change: dict[str, object], words: list[str]) -> None:
    tasks = {"t": scored(1)}
    one = write_answers(tmp_path / "one", tasks, generation={"max_tokens": 3})
    two = write_answers(tmp_path / "two", tasks, **{"generation": {"max_tokens": 3}, **change})
    with pytest.raises(EvaluationError) as refused:
        ledger(one, two)
    assert all(word in str(refused.value) for word in words), refused.value


def test_arms_with_other_items_are_refused_with_both_counts(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "one", {"t": scored(1, 1), "u": scored(1)})
    fewer = write_answers(tmp_path / "fewer", {"t": scored(1), "u": scored(1)})
    with pytest.raises(EvaluationError, match=r"'t': 1 differ, such as sha256:\w+, of 1 and 2; evaluate both again"):
        ledger(one, fewer)
    lacking = write_answers(tmp_path / "lacking", {"t": scored(1, 0)})
    with pytest.raises(EvaluationError, match=r"2 and 1 tasks, 1 of them only in one, such as u; .*--task"):
        ledger(one, lacking)
    assert ledger(one, lacking, task="t")["total"]["lost"] == 1
    with pytest.raises(EvaluationError, match=r"lacking: has no task 'u'; its tasks are t"):
        ledger(one, lacking, task="u")


def test_real_answers_of_a_tiny_model(world: World, half: Path, tmp_path: Path) -> None:
    """Every flip and example follows from the items that `evaluate` wrote."""
    _, before = score_instruct(world, tmp_path / "instruct")
    evaluate(world.instruct, world.data, world.delta, half, "shadow", world.params(), tmp_path / "shadow")
    found = ledger(tmp_path / "instruct/instruct", tmp_path / "shadow/shadow", examples=99)
    after = [json.loads(line) for line in (tmp_path / "shadow/shadow/items.jsonl").read_text().splitlines()]
    for task in ("next", "say"):
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a["task"] == task]
        won = {b["item"] for a, b in pairs if (a["score"], b["score"]) == (0, 1)}
        lost = {b["item"] for a, b in pairs if (a["score"], b["score"]) == (1, 0)}
        examples = found["tasks"][task]["examples"]
        assert ({row["item"] for row in examples["won"]}, {row["item"] for row in examples["lost"]}) == (won, lost)
        outputs = {b["item"]: (a["output"], b["output"]) for a, b in pairs}
        for row in [*examples["won"], *examples["lost"]]:
            assert (row["outputs"]["reference"], row["outputs"]["arm"]) == outputs[row["item"]]
    assert found["tasks"]["next"]["won"] > 6
    assert found["reference"]["name"] == "instruct"


def test_clusters_of_two_tasks_are_not_one(tmp_path: Path) -> None:
    tasks = {name: scored(1, 1, cluster="passage") for name in ("a", "b")}
    after = {name: scored(0, 0, cluster="passage") for name in ("a", "b")}
    found = ledger(write_answers(tmp_path / "one", tasks), write_answers(tmp_path / "two", after))
    assert (found["tasks"]["a"]["p"], found["total"]["p"]) == (1.0, 0.5)


def test_domain_and_guards_are_counted_apart(tmp_path: Path) -> None:
    folders = []
    for name, score in {"one": 1, "two": 0}.items():
        folders.append(write_answers(tmp_path / name, {"d": scored(score), "g": scored(score, score)}))
        head = json.loads((folders[-1] / "scores.json").read_bytes())
        head["tasks"]["g"]["role"] = "guard"
        (folders[-1] / "scores.json").write_text(json.dumps(head))
    found = ledger(*folders)
    assert {role: (its["n"], its["lost"]) for role, its in found["roles"].items()} == {
        "domain": (1, 1),
        "guard": (2, 2),
    }


def test_one_score_in_between_makes_a_task_one_of_shares(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "one", {"t": scored(1, 0.5)})
    found = ledger(one, write_answers(tmp_path / "two", {"t": scored(1, 0.5 - EPSILON / 2)}))["tasks"]["t"]
    assert (found["right_or_wrong"], found["epsilon"], found["lost"]) == (False, EPSILON, 0)


def test_answers_without_an_end_or_a_parser(tmp_path: Path) -> None:
    stopped = {"score": 1, "finish": "stop", "tokens": 1}
    one = write_answers(tmp_path / "one", {"t": [stopped, stopped]})
    two = write_answers(tmp_path / "two", {"t": [stopped, stopped | {"finish": None}]})
    found = ledger(one, two)["tasks"]["t"]["answers"]
    assert found["unstopped"] == {"reference": 0, "arm": 1 / 2}
    assert found["unparsed"] == {"reference": None, "arm": None}
