"""The public functions from Python: the results of the verbs, scores in every form, errors that a caller can catch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import shadowft_core as api
from shadowft_core.errors import CheckpointError, EvaluationError, ZeroDeltaError
from tests.fixtures.cli import Shadowft
from tests.fixtures.evaluation import World, rows
from tests.fixtures.models import Pair
from tests.fixtures.runs import Run

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs/examples/graft_and_judge.py"


def test_delta_graft_and_receipt_are_those_of_the_verbs(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    base, instruct = str(tiny_llama_pair.base), tiny_llama_pair.instruct  # text or a path
    facts = api.extract(base, instruct, str(tmp_path / "delta"), unrelated=True)
    delta = api.open_delta(str(tmp_path / "delta"))
    assert (facts["kind"], sum(facts["tensors"].values())) == ("dense", len(delta.names))
    options = api.Options(waivers=["unrelated"])
    by_folder = api.graft(instruct, [(str(tmp_path / "delta"), 1)], str(tmp_path / "one"), options)
    opened = api.graft(str(instruct), [(delta, 1.0)], tmp_path / "two", options)
    assert by_folder == opened
    assert by_folder["deltas"] == [{"digest": delta.digest, "scale": 1.0}]
    receipt = api.read_receipt(str(tmp_path / "one"))
    assert receipt["digest"] == by_folder["digest"]
    assert receipt["classes"]["grafted"] == len(delta.names)
    large = api.extract(base, instruct, tmp_path / "large", storage="float32", unrelated=True)
    assert (large["kind"], large["bytes"] > facts["bytes"]) == ("dense", True)
    assert api.extract(base, instruct, tmp_path / "low", lowrank=0.9, unrelated=True)["kind"] == "lowrank"
    assert api.graft(instruct, [(delta, np.float32(1))], tmp_path / "three", options) == opened, (
        "a number of any library"
    )


def test_a_tensor_that_only_one_side_has_is_ignored_when_named(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    base, instruct = shutil.copytree(tiny_llama_pair.base, tmp_path / "base"), tiny_llama_pair.instruct
    save_file({**load_file(base / "model.safetensors"), "extra": np.ones(2, np.float32)}, base / "model.safetensors")
    with pytest.raises(api.ShadowError, match="extra"):
        api.check_pair(base, instruct)
    assert api.check_pair(base, instruct, ignore=["extra"])["verdict"] == "warn"
    with pytest.raises(api.ShadowError, match="extra"):
        api.extract(base, instruct, tmp_path / "delta", unrelated=True)
    assert api.extract(base, instruct, tmp_path / "delta", unrelated=True, ignore=["extra"])["ignored"]


def test_a_pair_is_checked_as_by_the_verb(tiny_llama_pair: Pair, shadowft: Shadowft) -> None:
    found = api.check_pair(str(tiny_llama_pair.base), str(tiny_llama_pair.instruct))
    both = "--base", str(tiny_llama_pair.base), "--instruct", str(tiny_llama_pair.instruct)
    code, out, _ = shadowft("pair", *both, "--full", "--json")
    told = json.loads(out)
    assert code == 0
    assert found.items() <= {**told, "base": found["base"], "instruct": found["instruct"]}.items()
    assert told["base"]["digest"] == found["base"]["digest"]


def test_errors_are_shadow_errors_and_leave_the_folder_as_it_was(tiny_llama_pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(api.ShadowError, match="nowhere: no such folder") as caught:
        api.check_pair(str(tmp_path / "nowhere"), str(tiny_llama_pair.instruct))
    assert isinstance(caught.value, CheckpointError)
    with pytest.raises(ZeroDeltaError):
        api.extract(tiny_llama_pair.base, tiny_llama_pair.base, tmp_path / "out")
    with pytest.raises(CheckpointError, match="pass a folder made by `graft`"):
        api.read_receipt(str(tmp_path / "out"))
    assert (tmp_path / "out/mine").read_text() == "kept"


def test_a_published_and_registered_model_is_rebuilt(run: Run, tmp_path: Path) -> None:
    version = run.register()
    delta = run.work / "delta/shadow"
    digest = api.publish(str(delta), run.params.store)
    assert digest == api.open_delta(delta).digest
    assert api.publish(delta, run.params.store) == digest, "safe to repeat"
    registry = api.Registry(tracking_uri=run.params.registry.tracking_uri)
    made = api.materialize(
        f"models:/{version.name}/{version.number}", str(tmp_path / "rebuilt"), registry, run.params.store
    )
    assert api.read_receipt(tmp_path / "rebuilt")["digest"] == made["digest"]
    words = (f"models:/{version.name}/{version.number}", tmp_path / "other", registry, run.params.store)
    with pytest.raises(api.ShadowError, match="nowhere"):
        api.materialize(*words, instruct=str(tmp_path / "nowhere"))


def scored(lost: int = 0) -> list[dict[str, Any]]:
    """Scores of two arms on 40 items: the candidate wins a quarter of the domain, and loses so many of the guard."""
    right = {"domain": {"instruct": 30, "mine": 40}, "guard": {"instruct": 40, "mine": 40 - lost}}
    return [
        {"suite": suite, "task": f"{suite} task", "item_id": i, "arm": arm, "score": float(i < count)}
        for suite, arms in right.items()
        for arm, count in arms.items()
        for i in range(40)
    ]


def test_scores_are_judged_alike_in_every_form(tmp_path: Path) -> None:
    content = scored()
    table, frame = pa.Table.from_pylist(content), pd.DataFrame(content)
    pq.write_table(table, tmp_path / "scores.parquet")
    numbers = [row | {"score": np.float32(row["score"]), "item_id": np.int64(row["item_id"])} for row in content]
    file = str(tmp_path / "scores.parquet")
    found = [api.judge(scores, "mine") for scores in (content, numbers, table, frame, file, Path(file))]
    assert found[1:] == found[:-1]
    assert (found[0]["decision"], found[0]["candidate"], found[0]["format"]) == ("undecided", "mine", 2)
    frame["cluster"] = [None if item == 0 else item // 2 for item in frame["item_id"]]  # pandas makes NaN of None
    told = [{**row, "cluster": row["item_id"] // 2 if row["item_id"] else None} for row in content]
    assert api.judge(frame, "mine") == api.judge(told, "mine")
    assert api.judge(frame, "mine")["claims"][0]["clusters"] == 21, "20 clusters, and an item of none"


def test_the_thresholds_are_those_of_the_section_verdict() -> None:
    loose = api.Verdict(margin=0.5, margin_each=0.5)
    assert api.judge(scored(lost=2), "mine")["decision"] == "undecided"
    assert api.judge(scored(lost=2), "mine", loose)["decision"] == "promote"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [], "scores: has no rows"),
        (lambda rows: [*rows[:2], {"suite": "domain"}], "scores: row 3: has no column 'task', only suite; needed are"),
        (lambda rows: [*rows[:2], "score"], "scores: row 3: 'score', expected a mapping of suite, task, item_id"),
        (lambda rows: [rows[0] | {"score": "1"}], "scores: row 1: score is '1', expected a finite number"),
        (lambda rows: [rows[0] | {"score": np.float32("nan")}], "scores: row 1: score is nan"),
        (lambda rows: rows[:-1], "scores: "),
        (lambda rows: [row | {"arm": "other"} for row in rows[40:80]], "no row has the arm `instruct`, only other"),
        (lambda rows: pa.table({"suite": ["domain"]}), "scores: has no column 'task', only suite"),
        (lambda rows: pd.DataFrame({"score": [1, "one"]}), "write a table with one type in each column"),
    ],
)
def test_scores_that_cannot_be_judged_are_refused_in_one_line(change: Any, said: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        api.judge(change(scored()), "mine")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(EvaluationError, match="candidate is 'yours', but only these arms may ship: mine; name one"):
        api.judge(scored(), "yours")


def test_the_example_tunes_grafts_and_judges_a_real_model(world: World, tmp_path: Path) -> None:
    """The Base is the Instruct with noise; it learns to name the next letter, and the graft gives the Instruct that."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shutil.copytree(world.instruct, tmp_path / "models/instruct")
    tokenizer = AutoTokenizer.from_pretrained(world.instruct)
    model = AutoModelForCausalLM.from_pretrained(world.instruct, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.02 * weights.std() * torch.randn_like(weights))
    texts = [f"<user> {q} <end> <bot> {a} <end>" for skill in ("say", "next") for q, a in rows(skill)]
    ids = torch.tensor([tokenizer.encode(text) for text in texts])
    labels = torch.cat([torch.full_like(ids[:, :5], -100), ids[:, 5:]], dim=1)
    for name, steps in (("base", 0), ("tuned", 60)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=ids, labels=labels).loss.backward()
            optimizer.step()
        model.save_pretrained(tmp_path / "models" / name)
        tokenizer.save_pretrained(tmp_path / "models" / name)
    items = [
        {"suite": suite, "task": skill, "item_id": q, "question": q, "answer": a}
        for suite, skill in (("domain", "next"), ("repeating", "say"))
        for q, a in rows(skill)
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    done = subprocess.run([sys.executable, EXAMPLE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "ok"
    assert said[2] == "undecided"
    assert said[3].startswith("domain: grafted 1.000 against instruct 0.000")


def test_the_example_has_twenty_lines_and_the_page_shows_it() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    code = [line for line in text.partition('"""\n')[2].splitlines() if line and not line.startswith("#")]
    assert len(code) <= 20
    assert text.partition('"""\n\n')[2] in (ROOT / "docs/python.md").read_text(encoding="utf-8")
