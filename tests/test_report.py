"""The page loads no other file, shows the content of the files, escapes their text, and is reproducible."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.params import Verdict
from shadowft_core.report import report
from shadowft_core.verdict import verdict

EVIL = '<script>alert("x")</script> & \' $\\frac$ <img src=http://evil.test/x>'
TASKS = {"skill": ("domain", 200), "facts": ("domain", 120), "general": ("guard", 240), "refusal": ("guard", 150)}
SHARES = {
    "instruct": (0.12, 0.20, 0.96, 0.98),
    "direct": (0.97, 0.62, 0.58, 0.70),
    "direct_scaled": (0.80, 0.55, 0.93, 0.97),
    "shadow": (0.96, 0.75, 0.81, 0.93),
    "shadow_scaled": (0.93, 0.80, 0.96, 0.98),
}


def sha(text: str) -> str:
    import hashlib

    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def dump(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def write_work(work: Path, routes: tuple[str, ...] = ("shadow", "direct"), evil: str = "") -> Path:
    """The outputs of a finished run, with a real verdict over generated answers."""
    rng = np.random.default_rng(0)
    hard = {task: rng.random(n) for task, (_, n) in TASKS.items()}
    for name, shares in SHARES.items():
        group = name.split("_")[0]
        if group not in {"instruct", *routes}:
            continue
        rows, tasks = [], {}
        for (task, (role, n)), share in zip(TASKS.items(), shares, strict=True):
            scores = (hard[task] + rng.normal(0, 0.02, n) < share).astype(float)
            rows += [
                {"task": task, "item": sha(f"{task} {i}"), "score": float(s), "output": f"answer {i}: {s:.0f} {evil}"}
                for i, s in enumerate(scores)
            ]
            counts = {"cut": 1, "unparsed": 0, "empty": 0, "unstopped": 0}
            tasks[task] = {"role": role, "metric": "m", "n": n, "mean": float(scores.mean()), "counts": counts}
        folder = work / "scores" / group / name
        head = {"format": 1, "arm": name, "scale": 0.75, "model_digest": sha(name), "label": f"synthetic base{evil}"}
        dump(folder / "scores.json", head | {"template_digest": sha("template"), "tasks": tasks})
        (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    norms = {"weight_norm": 11.3, "delta_norm": 0.41, "cosine": 0.99991, "energy": 0.9981, "unchanged": 0.021}
    dump(
        work / "pair/pair.json",
        {
            "format": 1,
            "base": {"ref": f"pico:base{evil}", "digest": sha("base"), "label": "synthetic base"},
            "instruct": {"ref": "pico:instruct", "digest": sha("instruct"), "label": ""},
            "sigma": {"overall": 0.0281, "layers": {"0": 0.0203}, "modules": {"q_proj": 0.1}},
            "verdict": "ok",
            "reasons": [f"same tokenizer{evil}"],
            "tokenizer_digest": sha("tokenizer"),
        },
    )
    dump(
        work / "data/data-report.json",
        {
            "format": 2,
            "rows_read": 2104,
            "rows_used": 2000,
            "rows_dropped": {f"no assistant turn{evil}": 4, "duplicate": 60, "in a test item": 40},
            "fields_ignored": {f"idx{evil}": 2104},
            "files_not_read": [f"notes{evil}.txt"],
            "not_compared": [f"far{evil}"],
            "splits": {"train": 1900, "valid": 100, "dev": 0, "test": 0},
            "digest": sha("data"),
        },
    )
    for height, route in enumerate(routes):
        loss = 3.2 / (1 + np.arange(119) / 12) + 0.1 * height + rng.normal(0, 0.03, 119)
        dump(
            work / f"tuned/{route}/train.json",
            {"method": "lora", "seed": 0, "steps": 119, "tokens": 45000, "first_loss": loss[0], "last_loss": loss[-1]},
        )
        lines = [json.dumps({"step": i + 1, "loss": float(x)}) + "\n" for i, x in enumerate(loss)]
        (work / f"tuned/{route}/metrics.jsonl").write_text("".join(lines))
        dump(
            work / f"delta/{route}/delta.json",
            {"format": 1, "kind": "lora", "base": {"digest": sha(route)}, "tensors": {"a": {}, "b": {}}},
        )
        curve = [
            {"scale": s, "domain": 0.1 + 0.85 * min(1, 1.3 * s), "guards": 0.97 - 0.2 * s**3, "tasks": {}}
            for s in (0.25, 0.5, 0.75, 1.0)
        ]
        start = {"scale": 0.0, "domain": 0.1, "guards": 0.97, "tasks": {}}
        chosen = {"route": route, "scope": "all", "scale": 0.75, "curve": curve, "instruct": start}
        dump(work / f"sweep/{route}.json", chosen | {"format": 1, "reason": f"best domain within 0.02{evil}"})
    recipe = {"format": 1, "scope": "all", "dtype": "float32", "digest": sha("shadow_scaled")}
    dump(work / "grafted/shadow/recipe.json", recipe)
    dump(
        work / "grafted/shadow/receipt.json",
        {
            "format": 1,
            "classes": {"grafted": 14, "untouched": 6, "left_out": 0},
            "retention": norms,
            "grafted": {
                f"model.layers.{i}.self_attn.q_proj.weight{evil}": norms | {"delta_norm": 0.1 * i} for i in range(14)
            },
            "untouched": {f"model.layers.{i}.norm{evil}": "the delta does not touch it" for i in range(20)},
            "left_out": {},
        },
    )
    params = Verdict(alpha=0.05, margin=0.03, worthwhile=0.05, resamples=1999, seed=0)
    verdict(work / "scores", [work / "grafted/shadow/recipe.json"], list(routes), params, work / "verdict.json")
    return work


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def page(work: Path) -> Page:
    report(work, work / "report.html")
    return Page(work / "report.html")


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
        assert reason in shown.text


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
    forest, plane, sweep, loss = svgs
    assert "domain vs direct_scaled" in forest
    assert "refusal" in forest
    assert all(name in plane for name in SHARES)
    assert "shadow: scale 0.75 chosen" in sweep
    assert "training loss" in loss
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


def test_hostile_task_names_stay_text_in_figures(tmp_path: Path) -> None:
    write_work(tmp_path)
    path = tmp_path / "verdict.json"
    path.write_text(path.read_text().replace('"tasks":["refusal"]', json.dumps({"tasks": [EVIL]})[1:-1]))
    assert json.loads(path.read_text())["claims"][3]["tasks"] == [EVIL]
    hostile = page(tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in hostile.tags}
    assert EVIL in hostile.text


def test_the_same_files_give_the_same_bytes(finished: Path, shown: Page, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "elsewhere")
    assert page(tmp_path / "elsewhere").source == shown.source
    assert not re.search(r"\b20\d\d-\d\d", shown.text)
    assert str(finished) not in shown.source


def test_the_page_reports_missing_direct_tuning(tmp_path: Path) -> None:
    alone = page(write_work(tmp_path, routes=("shadow",)))
    assert "Direct tuning was not run" in alone.text
    assert "nothing is claimed about direct tuning" in alone.text
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
    assert "instruct 0.00" in shown.text


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
    with pytest.raises(EvaluationError, match=r"lacks .*base"):
        report(tmp_path, tmp_path / "report.html")


HEADLINES = {"promote": "may become champion", "hold": "The champion stays", "undecided": "too few items to settle"}


@pytest.mark.parametrize("decision", HEADLINES)
def test_the_headline_is_that_of_the_decision(tmp_path: Path, decision: str) -> None:
    path = write_work(tmp_path) / "verdict.json"
    dump(path, json.loads(path.read_bytes()) | {"decision": decision})
    said = page(tmp_path).text
    assert {name for name, words in HEADLINES.items() if words in said} == {decision}


def test_without_a_guard_the_page_says_so(tmp_path: Path, shown: Page) -> None:
    sentence = "No guard task was measured, so nothing is claimed about the abilities that the Instruct keeps."
    path = write_work(tmp_path) / "verdict.json"
    found = json.loads(path.read_bytes())
    dump(path, found | {"claims": [claim for claim in found["claims"] if claim["role"] == "domain"]})
    assert sentence in page(tmp_path).text
    assert sentence not in shown.text


def test_the_tensors_that_moved_most_come_first(shown: Page) -> None:
    layers = [int(at) for at in re.findall(r"model\.layers\.(\d+)\.self_attn", shown.text)]
    assert layers == list(range(13, 5, -1))
