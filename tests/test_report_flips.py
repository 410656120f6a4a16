"""What was forgotten, and answers that differ: against the Instruct, and against the champion if it was scored."""

import html
import json
import re
import shutil
from pathlib import Path

from shadowft_core.report.flips import flips
from tests.fixtures.answers import scored, write_answers
from tests.fixtures.report import page, write_work


def champion(work: Path, of: str = "scores/instruct/instruct") -> Path:
    """The champion's scores: those of another arm."""
    folder = work / "scores/champion/champion"
    shutil.copytree(work / of, folder)
    head = json.loads((folder / "scores.json").read_bytes())
    (folder / "scores.json").write_text(json.dumps(head | {"arm": "champion"}))
    return folder


def section(work: Path) -> str:
    text = html.unescape(re.sub(r"<[^>]*>", " ", page(work).source))
    return text[text.index("What was forgotten") : text.index("Answers that differ")]


def moved(work: Path, before: str, after: str) -> tuple[int, int]:
    """Items lost and won between two folders of scores."""
    scores = []
    for name in (before, after):
        rows = map(json.loads, (work / "scores" / name / "items.jsonl").read_text().splitlines())
        scores.append({(row["task"], row["item"]): row["score"] for row in rows})
    pairs = [(scores[0][key], scores[1][key]) for key in scores[0]]
    return pairs.count((1, 0)), pairs.count((0, 1))


def test_the_page_has_the_flips_of_every_task(tmp_path: Path) -> None:
    said = section(write_work(tmp_path))
    lost, won = moved(tmp_path, "instruct/instruct", "shadow/shadow_scaled")
    assert f"shadow_scaled against the Instruct: {lost} lost, {won} won of 710 items" in said
    assert min(lost, won) > 0
    assert re.search(r"\bskill\s+domain\s+200\s+0\s+156\s+\+156\s+100\.0 %\s", said)
    assert "the champion" not in said
    assert "does not record its generation settings" in said


def test_the_champion_is_compared_if_it_was_scored(tmp_path: Path) -> None:
    champion(write_work(tmp_path), "scores/direct/direct")
    lost, won = moved(tmp_path, "direct/direct", "shadow/shadow_scaled")
    said = section(tmp_path)
    assert f"shadow_scaled against the champion: {lost} lost, {won} won of 710 items" in said
    assert len(re.findall(r"\bKL\b", said)) == 2, "a KL is measured against the Instruct alone"


def test_a_champion_with_other_items_is_named_as_not_compared(tmp_path: Path) -> None:
    items = champion(write_work(tmp_path)) / "items.jsonl"
    items.write_text(items.read_text().replace('"item": "sha256:', '"item": "sha256:0', 1))
    said = section(tmp_path)
    assert "could not be compared with the champion" in said
    assert "did not answer the same items" in said
    assert "against the Instruct" in said


def test_kl_length_and_form_are_shown(tmp_path: Path) -> None:
    write_work(tmp_path)
    for arm, tokens in (("instruct/instruct", 10), ("shadow/shadow_scaled", 14)):
        items = tmp_path / "scores" / arm / "items.jsonl"
        rows = [json.loads(line) for line in items.read_text().splitlines()]
        ends = {"finish": "length" if tokens == 14 else "stop", "tokens": tokens, "parsed": None}
        items.write_text("".join(json.dumps(row | ends) + "\n" for row in rows))
        counts = items.parent / "scores.json"
        found = json.loads(counts.read_bytes())
        for about in found["tasks"].values():
            about["counts"] = dict.fromkeys(("copies", "cut", "unparsed", "empty", "unstopped"), 0)
        counts.write_text(json.dumps(found))
    head = tmp_path / "scores/shadow/shadow_scaled/scores.json"
    kl = {"answers": 64, "tokens": 900, "mean": 0.125, "max": 3.0, "tasks": {"skill": {"mean": 0.25}}}
    head.write_text(json.dumps(json.loads(head.read_bytes()) | {"kl": kl}))
    said = section(tmp_path)
    assert "KL of the Instruct to shadow_scaled: 0.125 nats per token, over 900 tokens of 64 answers" in said
    assert re.search(r"skill\s+domain\s+200\s+0\s+156\s+\+156\s+100\.0 %\s+\S+\s+0.25\s", said)
    assert re.search(r"skill\s+\+4.0\s+0 % to 100 %\s+-\s+0 %\s+0 %\s+100 %", said)


def test_what_is_kept_is_the_share_of_what_the_reference_has_right(tmp_path: Path) -> None:
    write_answers(tmp_path / "instruct", {"t": scored(1, 1, 1, 1, 0), "open": scored(0.5, 2.0), "none": scored(0, 0)})
    write_answers(tmp_path / "arm", {"t": scored(1, 1, 1, 0, 1), "open": scored(0.7, 2.0), "none": scored(0, 1)})
    [found] = flips({"instruct": tmp_path / "instruct", "arm": tmp_path / "arm"}, "arm")
    assert found["kept"] == {"t": 0.75, "open": None, "none": None}


def test_without_a_candidate_nothing_is_compared(tmp_path: Path) -> None:
    write_answers(tmp_path / "instruct", {"t": scored(1)})
    assert flips({"instruct": tmp_path / "instruct"}, None) == []


def test_prompt_and_both_answers_stand_side_by_side(tmp_path: Path) -> None:
    work = write_work(tmp_path)
    for arm in ("instruct/instruct", "shadow/shadow_scaled"):
        items = work / "scores" / arm / "items.jsonl"
        rows = [json.loads(line) for line in items.read_text().splitlines()]
        items.write_text("".join(json.dumps(row | {"prompt": "long " * 100}) + "\n" for row in rows))
    source = page(work).source
    text = html.unescape(source[source.index("Answers that differ") :])
    sides = r'<div class="sides">\s*<div>.*?instruct.*?answer (\d+): 0.*?</div></div>'
    sides += r"\s*<div>.*?shadow_scaled.*?answer \1: 1"
    assert re.search(sides, text, re.DOTALL)
    assert f"{('long ' * 100)[:400]} …</p>" in text


def test_hostile_characters_are_shown_by_their_code(tmp_path: Path) -> None:
    work = write_work(tmp_path, evil="\u202eevil\u0000")
    shown = page(work)
    assert "<U+202E>evil<U+0000>" in shown.text
    assert not set("\u202e\u0000") & set(shown.source)
