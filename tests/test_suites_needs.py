"""What suites need beside their data: packages, nltk's data, a hub; each is named when it is missing."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate
from shadowft_core.params import Evaluate
from shadowft_core.suites import TaskFiles
from shadowft_core.suites.catalogue import suite_of
from shadowft_core.suites.configs import Function, functions, harness_folder, read_config
from shadowft_core.suites.harness import import_functions
from tests.fixtures import benchmarks
from tests.fixtures.bare import bare_scores
from tests.fixtures.evaluation import NO_LIMITS, read_arm
from tests.servers.hub import REVISION, Hub
from tests.test_suites_fetch import fetched

FETCH = """
import sys
from pathlib import Path
from huggingface_hub import constants
from shadowft_core.cli.suites import _download
from shadowft_core.suites.catalogue import Benchmark, Line, Suite
from shadowft_core.suites.fetch import fetch_suite

own = {"dataset_path": "owner/sums", "dataset_name": "main", "test_split": "test", "fewshot_split": "train",
       "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
suite = Suite("sums", "", (Line(Benchmark("sums", own=own, shots=2)),))
for one in fetch_suite(suite, Path(sys.argv[1]), None, _download):
    print(one.state, one.items)
assert constants.HF_HUB_OFFLINE, "the offline switch must be down again"
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    (tmp_path / "sums").mkdir()
    benchmarks.hub_layout(tmp_path / "sums")
    server = Hub({"sums": tmp_path / "sums"})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def from_hub(hub: Hub, place: Path) -> subprocess.CompletedProcess[str]:
    places = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(place / "cache")}
    command = [sys.executable, "-c", FETCH, str(place / "tasks")]
    return subprocess.run(command, env=os.environ | places, capture_output=True, text=True, timeout=300, check=False)


def test_a_suite_comes_from_a_hub_once_at_a_commit_that_is_recorded(hub: Hub, tmp_path: Path) -> None:
    done = from_hub(hub, tmp_path)
    assert (done.returncode, done.stdout) == (0, "written 3\n"), done.stderr
    record = json.loads((tmp_path / "tasks/sums/suite.json").read_bytes())
    assert record["revisions"] == {"owner/sums": REVISION}
    assert record["licence"] == "mit"
    task = TaskFiles(tmp_path / "tasks").build("sums", tmp_path, tmp_path / "c")
    assert (len(list(task.test_docs())), len(list(task.fewshot_docs())), task.config.num_fewshot) == (3, 7, 2)
    asked = len(hub.log)
    assert from_hub(hub, tmp_path).stdout == "kept 3\n"
    assert len(hub.log) == asked  # what is there is not asked for again
    next((tmp_path / "tasks/sums/data").glob("*test*")).unlink()
    hub.log.clear()
    assert from_hub(hub, tmp_path).stdout == "written 3\n"
    assert not [path for _, path, _ in hub.log if path == "/api/datasets/owner/sums"]  # the recorded commit is taken


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path) -> None:
    nobody = Hub({})
    nobody.server_close()
    done = from_hub(nobody, tmp_path)
    assert "InputError: hf:owner/sums: the hub failed" in done.stderr
    assert not (tmp_path / "tasks/sums").exists()


@pytest.fixture
def punkt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder in place of nltk's sentence data: none of the items here counts sentences."""
    import nltk

    (tmp_path / "nltk/tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])


@pytest.mark.usefixtures("punkt")
def test_ifeval_runs_once_a_data_file_is_given(tmp_path: Path) -> None:
    reader = benchmarks.write_reader(tmp_path / "reader")
    fetched(tmp_path, "ifeval", benchmarks.ifeval)
    [file] = (tmp_path / "tasks/suites/ifeval").glob("*.yaml")
    file.write_text(file.read_text() + "generation_kwargs: {until: [], do_sample: false, max_gen_toks: 40}\n")
    params = Evaluate(tasks=str(tmp_path / "tasks"), domain=("ifeval",), limits=NO_LIMITS)
    evaluate(reader, tmp_path, None, None, "instruct", params, tmp_path / "out")
    scores, items = read_arm(tmp_path / "out/instruct")
    assert (scores["tasks"]["ifeval"]["metric"], scores["tasks"]["ifeval"]["n"]) == ("prompt_level_strict_acc", 3)
    data = {"train": str(next(file.parent.glob("data/*.parquet")))}
    kwargs = {"until": [], "do_sample": False, "max_gen_toks": 40}
    bare = bare_scores(reader, "ifeval/ifeval.yaml", data, "prompt_level_strict_acc", 3, generation_kwargs=kwargs)
    assert sorted((item["prompt"], item["score"]) for item in items) == bare
    assert {score for _, score in bare} == {0, 1}


def test_sentence_data_that_is_missing_is_named_and_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    fetched(tmp_path, "ifeval", benchmarks.ifeval)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "none")])
    monkeypatch.setattr(nltk, "download", lambda *_: pytest.fail("a download was tried"))
    with pytest.raises(EvaluationError, match=r"task ifeval: needs nltk's sentence data punkt_tab.*set .*NLTK_DATA"):
        TaskFiles(tmp_path / "tasks").build("ifeval", tmp_path, tmp_path / "cache")


@pytest.mark.usefixtures("punkt")
@pytest.mark.parametrize("package", ["langdetect", "immutabledict"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched(tmp_path, "ifeval", benchmarks.ifeval)
    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.ifeval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"task ifeval: needs the Python package {package}, .*pip install 'shadowft\[ifeval\]'"
    with pytest.raises(EvaluationError, match=message):
        TaskFiles(tmp_path / "tasks").build("ifeval", tmp_path, tmp_path / "cache")


def test_mathematics_names_its_own_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helper.py").write_text("import math_verify\n\ndef text(doc):\n    return ''\n")
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(EvaluationError, match=r"needs the Python package math_verify, .*'shadowft\[math\]'"):
        import_functions("t", {"doc_to_text": Function(tmp_path, "helper.text")})


def test_items_on_a_hub_are_refused_with_what_to_do(tmp_path: Path) -> None:
    far = {"task": "far", "dataset_path": "someone/some", "test_split": "test", "output_type": "generate_until"}
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(far))
    with pytest.raises(EvaluationError, match=r"task far: its items are on a hub \(someone/some\)"):
        TaskFiles(tmp_path).build("far", tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("file", ["gsm8k/none.yaml", "../__init__.py", "/etc/passwd"])
def test_a_task_file_of_the_harness_is_below_its_task_files(file: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"task: mine\nharness: {file}\n")
    with pytest.raises(EvaluationError, match=r"mine\.yaml: harness: .*: the installed .* has no such task file"):
        read_config(tmp_path / "mine.yaml")


def test_functions_stay_names_until_a_task_is_built(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "base.yaml").write_text("process_results: !function own.judge\nnum_fewshot: 3\nrepeats: 2\n")
    (tmp_path / "mine.yaml").write_text("task: mine\ninclude: base.yaml\nrepeats: null\n")
    config = read_config(tmp_path / "mine.yaml")
    assert config == {"task": "mine", "process_results": Function(tmp_path, "own.judge"), "num_fewshot": 3}
    assert [one.of_harness for one in functions(config)] == [False]
    inherited = read_config(harness_folder() / "ifeval/ifeval.yaml")
    assert [one.of_harness for one in functions(inherited)] == [True, True, True]
    (tmp_path / "mine.yaml").write_text("task: mine\ninclude: mine.yaml\n")
    with pytest.raises(EvaluationError, match=r"mine\.yaml: includes itself"):
        read_config(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("value", "tag"), [("x", "bool"), ("''", "bool"), ("''", "int"), ("x", "int"), ("''", "float")]
)
def test_a_tag_that_does_not_fit_its_text_is_refused_with_its_line(value: str, tag: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"task: mine\nnum_fewshot: !!{tag} {value}\n")
    with pytest.raises(EvaluationError, match=rf"mine\.yaml: .* line 2, .* does not fit the tag !!{tag}; correct it"):
        read_config(tmp_path / "mine.yaml")


def test_task_files_include_each_other_to_a_limit(tmp_path: Path) -> None:
    for number in range(18):
        (tmp_path / f"{number}.yaml").write_text(f"include: {number - 1}.yaml\n" if number else "task: mine\n")
    assert read_config(tmp_path / "16.yaml") == {"task": "mine"}
    with pytest.raises(EvaluationError, match=r"0\.yaml: included by more than 16 files"):
        read_config(tmp_path / "17.yaml")


def test_an_unknown_suite_is_refused_with_similar_names() -> None:
    with pytest.raises(EvaluationError, match="suite gsm8q: unknown; did you mean gsm8k"):
        suite_of("gsm8q")
