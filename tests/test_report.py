"""The page loads no other file, shows the content of the files, escapes their text, and is reproducible."""

import json
import re
import shutil
from pathlib import Path

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.report import report
from shadowft_core.report.tensors import largest
from tests.fixtures.report import EVIL, SHARES, TASKS, Page, dump, page, sha, write_work


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_work(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def shown(finished: Path) -> Page:
    return page(finished)


def test_the_page_shows_the_decision_and_every_reason(finished: Path, shown: Page) -> None:
    found = json.loads((finished / "verdict.json").read_bytes())
    assert f'<h1 class="{found["decision"]}">{found["decision"]}</h1>' in shown.source
    assert len(found["reasons"]) >= 8
    for reason in found["reasons"]:
        assert reason.removeprefix("not part of the decision: ") in shown.text


def test_the_page_shows_every_arm_task_digest_and_label(shown: Page) -> None:
    for name in SHARES:
        assert sha(name) in shown.text
    first = [shown.text.index(f"{name} synthetic base") for name in SHARES]
    assert first == sorted(first)
    for text in [*SHARES, *TASKS, "synthetic base", "best domain within 0.02", "0.0281", sha("data"), "99.81 %"]:
        assert text in shown.text
    assert shown.text.count("synthetic base") >= 2 + len(SHARES)


def test_the_table_has_the_mean_of_every_arm(finished: Path, shown: Page) -> None:
    for arm in json.loads((finished / "verdict.json").read_bytes())["arms"].values():
        low, high = arm["domain"]["interval"]
        assert f"{arm['domain']['mean']:.3f} [{low:.3f}, {high:.3f}]" in shown.text
    assert shown.text.count(f"{len(TASKS)} cut of ") == len(SHARES)


def test_the_figures_are_drawn_from_the_files(shown: Page) -> None:
    svgs = re.findall(r"<svg.*?</svg>", shown.source, re.DOTALL)
    pareto, gate, method, sweep, loss, heat = svgs
    assert "domain: shadow_scaled vs instruct" in gate
    assert "refusal" in gate
    assert "domain: shadow_scaled vs direct_scaled" in method
    assert all(name in pareto for name in SHARES)
    assert "shadow: scale 0.75 chosen" in sweep
    assert "training loss" in loss
    assert "q_proj" in heat
    ids = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = re.findall(r"(?:url\(|href=\")#([^\")]+)", shown.source)
    assert used
    assert set(used) <= set(ids)


def test_the_page_loads_no_other_file(shown: Page) -> None:
    for tag, attrs in shown.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "img"}
        for key in ("src", "href", "xlink:href", "action", "data"):
            assert (attrs.get(key) or "#").startswith("#"), f"{tag} {key} {attrs[key]}"
    assert "@import" not in shown.source
    assert not re.search(r"url\((?!#)", shown.source)


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    hostile = page(write_work(tmp_path, evil=EVIL))
    assert not {"script", "img"} & {tag for tag, _ in hostile.tags}
    assert hostile.text.count(EVIL) > 20
    assert "default-src 'none'; style-src 'unsafe-inline'" in hostile.source


def test_the_same_files_give_the_same_bytes(finished: Path, shown: Page, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "elsewhere")
    assert page(tmp_path / "elsewhere").source == shown.source
    assert not re.search(r"\b20\d\d-\d\d", shown.text)
    assert str(finished) not in shown.source


def test_the_page_reports_missing_direct_tuning(tmp_path: Path) -> None:
    alone = page(write_work(tmp_path, routes=("shadow",)))
    assert "The route direct was not run, so it has no arms." in alone.text
    assert "The route direct was not run, so nothing is claimed about it." in alone.text
    assert "direct_scaled" not in alone.text


def test_the_page_reports_missing_optional_files(tmp_path: Path) -> None:
    write_work(tmp_path)
    for name in ("pair", "data", "tuned", "delta", "sweep", "grafted"):
        shutil.rmtree(tmp_path / name)
    bare = page(tmp_path)
    for sentence in ("No pair.json", "No data report", "No training", "No sweep", "No receipt"):
        assert sentence in bare.text


def test_the_examples_are_items_that_differ(shown: Page) -> None:
    assert re.search(r"skill: \d+ items won against the Instruct", shown.text)
    assert re.search(r"instruct 0\.00\s*answer \d+: 0\s+shadow_scaled 1\.00\s*answer \d+: 1", shown.text)


@pytest.mark.parametrize("name", ["verdict.json", "scores/shadow/shadow_scaled/items.jsonl"])
def test_a_missing_or_broken_file_is_named_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    write_work(tmp_path)
    (tmp_path / name).write_text("{")
    with pytest.raises(Exception, match=re.escape(name)) as error:
        report(tmp_path, tmp_path / "report.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_an_incomplete_file_is_an_error(tmp_path: Path) -> None:
    write_work(tmp_path)
    dump(tmp_path / "pair/pair.json", {"format": 1})
    with pytest.raises(EvaluationError, match=r"pair.json: field base is missing"):
        report(tmp_path, tmp_path / "report.html")


def test_without_a_guard_the_page_says_so(tmp_path: Path, shown: Page) -> None:
    sentence = "No guard task was measured, so nothing is claimed about forgetting."
    path = write_work(tmp_path) / "verdict.json"
    found = json.loads(path.read_bytes())
    dump(path, found | {"arms": {name: arm | {"guards": None} for name, arm in found["arms"].items()}})
    assert sentence in page(tmp_path).text
    assert sentence not in shown.text


def test_the_tensors_that_moved_most_come_first(shown: Page) -> None:
    table = shown.text[shown.text.index("largest change") :]
    layers = [int(at) for at in re.findall(r"model\.layers\.(\d+)\.self_attn", table)]
    assert layers == list(range(13, 5, -1))


def test_a_change_is_large_in_proportion_to_the_weight() -> None:
    grafted = {
        "wide": {"delta_norm": 2.0, "weight_norm": 100.0},
        "narrow": {"delta_norm": 1.0, "weight_norm": 2.0},
        "still": {"delta_norm": 0.0, "weight_norm": 0.0},
    }
    assert [name for name, _ in largest({"grafted": grafted}, 2)] == ["narrow", "wide"]
