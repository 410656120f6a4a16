"""`make demo-real` without the model: its workspace, params and guard task."""

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
import pytest
import yaml

from shadowft_core.demo import real
from shadowft_core.demo.smollm2 import INSTRUCT_LABEL, base_label
from shadowft_core.errors import InputError
from shadowft_core.evaluate import open_bench, open_engine
from shadowft_core.grafting import Options
from shadowft_core.params import Evaluate, Params, load_params
from tests.test_demo_smollm2 import tiny  # noqa: F401  the fixture


def guard_file(folder: Path, items: int = 80) -> Path:
    file = folder / "arc_easy.jsonl"
    rows = [{"query": f"Question: what is {n} + 1?", "choices": [str(n + 1), "none"], "gold": 0} for n in range(items)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    return file


@pytest.mark.parametrize("guarded", [True, False])
def test_settings_are_valid_params(guarded: bool) -> None:
    params = Params.model_validate(real.settings_of("input/x.jsonl", "smollm2:base?steps=1", guarded=guarded))
    assert params.evaluate.guards == (("arc_easy",) if guarded else ())
    assert not {*params.sweep.domain, *params.sweep.guards} & {*params.evaluate.domain, *params.evaluate.guards}
    assert params.prepare.dev > 0 < params.prepare.test


def test_the_server_engine_is_a_setting_that_load_params_takes(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.touch()
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    real.prepare_workspace(tmp_path / "w", data, None, None, program)
    engine = load_params(tmp_path / "w/params.yaml").evaluate.engine
    assert engine.server is not None
    assert {str(program), "{model}", "{name}", "{port}", "float32"} <= set(engine.server.command)
    with pytest.raises(InputError, match=r"--vllm .*no-such: no such file"):
        real.prepare_workspace(tmp_path / "w", data, None, None, tmp_path / "no-such")


def test_settings_have_every_section_that_a_stage_depends_on() -> None:
    stages = yaml.safe_load((Path(real.ROOT) / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    named = {name.split(".")[0] for stage in stages.values() for name in stage.get("do", stage).get("params", [])}
    assert named <= set(real.settings_of("input/x.jsonl", "smollm2:base?steps=1", guarded=True))


def test_guard_parts_are_disjoint_and_keep_their_items(tmp_path: Path) -> None:
    file = guard_file(tmp_path)
    parts = real.guard_items(file)
    queries = {task: [item["query"] for item in part] for task, part in parts.items()}
    assert len(queries["arc_easy_dev"]) == real.GUARD_DEV_ITEMS
    assert sorted(queries["arc_easy_dev"] + queries["arc_easy"]) == sorted(
        f"Question: what is {n} + 1?" for n in range(80)
    )
    file.write_text('{"query": "a", "choices": ["b", "c"], "gold": 2}\n')
    with pytest.raises(
        InputError, match=r"arc_easy.jsonl:1: expected query \(text\), choices \(2 or more texts\), gold"
    ):
        real.guard_items(file)
    with pytest.raises(InputError, match="63 distinct items, expected 64 or more"):
        real.guard_items(guard_file(tmp_path, 63))


def test_the_workspace_is_a_clone_with_inputs_and_params(tmp_path: Path) -> None:
    data, plain_text, workspace = tmp_path / "my rows.jsonl", tmp_path / "plain & simple.txt", tmp_path / "real"
    plain_text.write_text("Plain text.")
    data.write_text("".join(json.dumps({"prompt": f"p{n}", "response": "r"}) + "\n" for n in range(9)))
    real.prepare_workspace(workspace, data, guard_file(tmp_path), plain_text)
    params = load_params(workspace / "params.yaml")
    assert (workspace / params.prepare.data).read_bytes() == data.read_bytes()
    [text] = parse_qs(params.fetch.base.partition("?")[2])["text"]
    assert (workspace / text).read_bytes() == plain_text.read_bytes()
    command = ["git", "-C", str(real.ROOT), "show", "HEAD:dvc.yaml"]
    committed = subprocess.run(command, capture_output=True, check=True).stdout
    assert (workspace / "dvc.yaml").read_bytes() == committed
    names = {path.name for path in (workspace / params.evaluate.tasks).iterdir()}
    assert names == {"arc_easy.jsonl", "arc_easy.yaml", "arc_easy_dev.jsonl", "arc_easy_dev.yaml"}

    (workspace / "work").mkdir()
    (workspace / "work" / "kept").write_text("an earlier stage")
    real.prepare_workspace(workspace, data, None, None)
    assert (workspace / "work" / "kept").read_text() == "an earlier stage"
    assert load_params(workspace / "params.yaml").evaluate.guards == ()
    assert list((workspace / "input" / "tasks").iterdir()) == []


def test_missing_input_leaves_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--data .*absent.jsonl: no such file; name an existing file$"):
        real.prepare_workspace(tmp_path / "real", tmp_path / "absent.jsonl", None, None)
    assert not (tmp_path / "real").exists()


def test_the_guard_task_is_scored_by_the_harness(
    tiny: tuple[Path, dict[str, np.ndarray], Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """The written task files work with the real harness: items, prompt and the share of right answers."""
    parts = real.guard_items(guard_file(tmp_path))
    real.write_tasks(tmp_path / "tasks", parts)
    settings = real.settings_of("x", "smollm2:base", guarded=True)["evaluate"]
    params = Evaluate.model_validate({**settings, "tasks": str(tmp_path / "tasks"), "limit": 5})
    with (
        open_bench(tiny[2], tmp_path, params, (), params.guards) as bench,
        open_engine(tiny[2], bench.tokenizer, params) as engine,
        engine.arm([], Options()) as arm,
    ):
        score = bench.score(arm, "instruct")["arc_easy"]
    assert (score.metric, len(score.items)) == ("acc", 5)
    assert {item.score for item in score.items} <= {0.0, 1.0}
    expected = [item["choices"][0] for item in parts["arc_easy"][:5]]
    right = sum(item.output in expected for item in score.items)
    assert score.mean == right / 5


def test_help_and_errors_of_the_driver(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "shadowft_core.demo.real", *arguments]
        return subprocess.run(command, cwd=real.ROOT, capture_output=True, text=True, check=False)

    shown = run("--help")
    assert shown.returncode == 0
    assert "Example: python -m shadowft_core.demo.real --data my_rows.jsonl" in shown.stdout
    refused = run("--data", str(tmp_path / "absent.jsonl"), "--workspace", str(tmp_path / "real"))
    assert refused.returncode == InputError.exit_code
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: --data ")


def test_the_saved_result_names_the_synthetic_base(tmp_path: Path) -> None:
    score = {"mean": -0.5, "interval": [-0.6, -0.4], "n": 128}
    arm = {"scale": 0.5, "domain": score, "guards": {}, "tasks": {"heldout": score}}
    files = {
        "work/verdict.json": {
            "decision": "hold",
            "candidate": "shadow_scaled",
            "reasons": ["no gain"],
            "arms": {"instruct": arm, "shadow_scaled": arm},
        },
        "work/pair/pair.json": {
            "base": {"label": base_label(40), "digest": "sha256:b"},
            "instruct": {"label": INSTRUCT_LABEL, "digest": "sha256:i"},
            "sigma": {"overall": 0.0123456, "layers": {}},
        },
        "work/data/data-report.json": {"splits": {"train": 427, "test": 128}},
        "work/sweep/shadow.json": {"reason": "Scale 0.5 is best."},
        "work/sweep/direct.json": {"reason": "Scale 1 is best."},
        "var/durations.json": {"fetch": 300.5},
    }
    for name, value in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    settings = real.settings_of("x", "smollm2:base", guarded=False)
    (tmp_path / "params.yaml").write_text(json.dumps(settings))
    real.save_result(tmp_path, Path("my rows.jsonl"), tmp_path / "results")
    page = (tmp_path / "results" / "demo-real-my-rows.md").read_text()
    for words in (
        "# Verdict: hold",
        "- no gain",
        base_label(40),
        "0.01235",
        "Scale 0.5 is best.",
        "no evidence for or",
    ):
        assert words in page
    saved = json.loads((tmp_path / "results" / "demo-real-my-rows.json").read_text())
    assert (saved["seconds"], saved["verdict"]["decision"]) == ({"fetch": 300.5}, "hold")
