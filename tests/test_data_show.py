"""`shadowft data show`: prepared data as a person sees it."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from shadowft_core.params import Prepare, Render, Replay
from shadowft_core.prepare import prepare
from shadowft_core.prepare.tracked import content_of
from shadowft_core.rendering import IGNORED, load_renderer
from tests.fixtures.cli import Shadowft
from tests.fixtures.data import Stage, lines, talk
from tests.fixtures.pictures import picture

PNG = "data:image/png;base64," + base64.b64encode(picture()).decode()


def shown(shadowft: Shadowft, *words: object) -> dict[str, Any]:
    """The answer of `data show`, as JSON."""
    done = shadowft("data", "show", *words, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_ten_rows_and_the_size_of_each_split_are_shown(stage: Stage, shadowft: Shadowft) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"question {n}", "word " * n + "end") for n in range(30)]))
    report = stage.run()
    found = shown(shadowft, stage.out)
    assert {name: one["rows"] for name, one in found["splits"].items()} == report["splits"]
    assert found["splits"]["train"]["characters"] == report["characters"]["train"]
    smallest = sorted(row["id"] for row in stage.split())[:10]
    expected = [row["messages"] for row in stage.split() if row["id"] in smallest]
    assert [sample["messages"] for sample in found["samples"]] == expected
    assert len(expected) == 10
    text = shadowft("data", "show", stage.out).out
    assert f"user: {expected[0][0]['content']}\nassistant: {expected[0][1]['content']}\n" in text


def test_images_and_the_rows_of_replay_are_shown(stage: Stage, shadowft: Shadowft) -> None:
    (stage.data / "rows.jsonl").write_bytes(
        lines([{"question": "See <image> here", "image": PNG, "answer": "a"}, talk("one"), talk("two")])
    )
    general = stage.data.parent / "general.jsonl"
    general.write_bytes(lines([talk(f"general {n}") for n in range(9)]))
    replay = Replay(data=str(general), digest=content_of(general).digest, share=0.25)
    prepare(stage.data, None, Prepare(data="-", valid=0, near=None, replay=replay), stage.out)
    assert shown(shadowft, stage.out)["splits"]["replay"]["rows"] == 1
    text = shadowft("data", "show", stage.out).out
    assert "user: See [image] here\n" in text
    assert re.search(r" replay +1 +prompt ", text)


def test_a_folder_of_something_else_is_refused(stage: Stage, shadowft: Shadowft) -> None:
    shadowft("data", "show", stage.data).refused(3, "data: expected a folder made by `prepare`")


def test_rows_similar_to_test_items_are_shown(stage: Stage, shadowft: Shadowft) -> None:
    asked = "How many eggs do twelve hens lay in a week of seven days"
    rows = [talk(f"{asked.replace('twelve', 'ten')} and why?"), talk(asked[:30]), talk("Name a river of the north.")]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    (stage.tasks / "items.jsonl").write_bytes(lines([{"question": "Why?"}, {"question": asked}]))
    stage.run()
    assert shown(shadowft, stage.out)["nearest"] is None
    first, second = shown(shadowft, stage.out, "--tasks", stage.tasks)["nearest"]
    assert (first["source"], first["item"]) == ("rows.jsonl:1", "items.jsonl:2")
    assert first["similarity"] == 8 / (11 + 13 - 8)
    assert second["source"] == "rows.jsonl:2"
    assert "0.50 rows.jsonl:1 and items.jsonl:2" in shadowft("data", "show", stage.out, "--tasks", stage.tasks).out


def test_tokens_are_those_of_training(stage: Stage, shadowft: Shadowft, materials: dict[str, str]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([talk("one two", "three"), talk("one", "two three " * 400)]))
    model = Path(materials["model"])
    done = shadowft("prepare", "--data", stage.data, "--max-bad", 0.9, "--tokenizer", model, "--out", stage.out)
    assert done.code == 0, done.err
    report = json.loads((stage.out / "data-report.json").read_text())
    renderer = load_renderer(model, Render())
    lengths = [len(renderer.samples(row["messages"])[0].input_ids) for row in stage.split()]
    tokens = report["tokens"]["train"]
    assert (tokens["rows"], tokens["min"], tokens["max"]) == (len(lengths), min(lengths), max(lengths))
    assert tokens["too_long"] == sum(length > tokens["max_length"] for length in lengths)
    assert tokens["refused"] == {}
    found = shown(shadowft, stage.out, "--tokenizer", model)
    assert found["splits"]["train"]["tokens"] == tokens
    (parts,) = found["samples"][0]["sequences"]
    sample = renderer.samples(found["samples"][0]["messages"])[0]
    learned = [one["text"] for one in parts if one["learned"]]
    ids = [label for label in sample.labels if label != IGNORED]
    for text, tokens in (("".join(one["text"] for one in parts), sample.input_ids), ("".join(learned), ids)):
        assert text.replace(" ", "") == renderer.tokenizer.decode(tokens).replace(" ", ""), "it joins words by blanks"
    assert f"{{+{learned[0]}+}}" in shadowft("data", "show", stage.out, "--tokenizer", model).out


def test_a_row_that_the_template_refuses_is_named(stage: Stage, shadowft: Shadowft, materials: dict[str, str]) -> None:
    renderer = load_renderer(Path(materials["model"]), Render())
    control = renderer.tokenizer.eos_token
    (stage.data / "rows.jsonl").write_bytes(lines([talk(f"a {control} b"), talk("fine")]))
    stage.run()
    found = shown(shadowft, stage.out, "--tokenizer", materials["model"])
    reason = f"control token {control} in the text"
    assert found["splits"]["train"]["tokens"]["refused"] == {reason: {"rows": 1, "sources": ["rows.jsonl:1"]}}
    assert [sample["refused"] for sample in found["samples"] if "refused" in sample] == [reason]
