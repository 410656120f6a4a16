"""What a task file may run: nothing of its own without --allow-code-execution, and templates never."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import open_bench
from shadowft_core.suites import TaskFiles
from shadowft_core.suites.configs import Function, harness_folder, read_config
from shadowft_core.suites.consent import of_harness, require_consent
from tests.fixtures.cli import Shadowft
from tests.fixtures.evaluation import World, score_instruct

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: a
generation_kwargs: {until: ["<end>"], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROOT = Path(__file__).parent.parent
FLAG = "--allow-code-execution"
MARK = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\ndef f(*a, **k):\n    return a\nclass C: pass\n"
ROW = {"prompt": "def say():\n", "test": "def check(candidate):\n    assert candidate() == 'a'", "entry_point": "say"}
REFUSED = {
    "process_docs": "process_docs: !function own.f",
    "process_results": "process_results: !function own.f",
    "doc_to_text": "doc_to_text: !function own.f",
    "class": "class: !function own.C",
    "custom_dataset": "custom_dataset: !function own.f",
    "metric": "metric_list: [{metric: !function own.f}]",
    "aggregation": "metric_list: [{metric: acc, aggregation: !function own.f}]",
    "filter": "filter_list: [{name: x, filter: [{function: custom, filter_fn: !function own.f}]}]",
    "few-shot examples": "fewshot_config: {samples: !function own.f}",
    "an included file": "include: base",
    "a module by name": "process_docs: !function os.system",
    "the harness's own loader": "process_docs: !function lm_eval.tasks._yaml_loader._import_fun_from_str",
    "a function of the harness outside its tasks": "process_docs: !function lm_eval.utils.import_function",
    "a module above the folder": "process_docs: !function ...own.f",
    "a metric of a hub": "metric_list: [{metric: someone/metric}]",
    "a metric that is loaded": "metric_list: [{metric: exact_match, hf_evaluate: true}]",
    "a prompt file": "use_prompt: prompts.yaml:x",
    "answers that are programs": "scorer: code",
    "answers that are programs, all keys written": "scorer: {kind: code, form: null}",
    "a function of the harness that loads models with their code": "custom_dataset: "
    "!function lm_eval.tasks.babilong.common_utils.get_tokenizer",
}


def write(folder: Path, extra: str, row: dict[str, Any] = ROW | {"q": "say a", "a": "a"}) -> Path:
    """A task folder with one task, a module `own` that leaves a mark when it runs, and a base to include."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = [line.partition(":")[0] for line in extra.splitlines()]
    kept = [line for line in TASK.splitlines() if line.partition(":")[0] not in keys]
    (folder / "mine.yaml").write_text("\n".join([*kept, extra, ""]))
    (folder / "base").write_text("process_docs: !function own.f\n")
    (folder / "own.py").write_text(MARK.format(mark=str(folder / "mark")))
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_task_that_runs_code_is_refused_before_it_runs(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", REFUSED[name])
    with pytest.raises(EvaluationError, match=rf"^task mine \(.*mine.yaml\): .*{FLAG}") as raised:
        TaskFiles(folder).build("mine", tmp_path, tmp_path)
    assert len(str(raised.value)) < 1000
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("key", ["custom_dataset: null", "custom_dataset: own.f", "class: null", "class: ''"])
def test_a_key_without_a_function_opens_no_way_around_the_data_files(key: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", f"{key}\ndataset_path: someone/data")
    with pytest.raises(EvaluationError, match=r"its items are on a hub \(someone/data\)"):
        TaskFiles(folder).build("mine", tmp_path, tmp_path)


def test_metrics_may_be_named_without_a_mapping(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", "metric_list: [exact_match]")
    require_consent("mine", folder / "mine.yaml", read_config(folder / "mine.yaml"), allowed=False)


def test_python_tags_in_a_task_file_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", "doc_to_text: !!python/name:os.system ''")
    with pytest.raises(EvaluationError, match=r"the tag !!python.* is not accepted"):
        TaskFiles(folder, allow_code=True)


def test_an_evaluation_is_refused_before_a_model_is_loaded(world: World, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", REFUSED["process_docs"])
    params = world.params(tasks=str(folder), domain=("mine",), guards=(), allow_code_execution=False)
    with (
        pytest.raises(EvaluationError, match=f"task mine .*{FLAG}"),
        open_bench(world.instruct, world.data, params, params.domain, ()),
    ):
        pass
    assert not (folder / "mark").exists()


def test_the_flag_of_the_verbs_allows_it_for_a_run(world: World, tmp_path: Path, shadowft: Shadowft) -> None:
    folder = write(tmp_path / "tasks", "process_docs: !function own.f")
    (folder / "dev.yaml").write_text((folder / "mine.yaml").read_text().replace("task: mine", "task: dev"))
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"] |= {"tasks": str(folder), "domain": ["mine"], "guards": []}
    params["sweep"] |= {"domain": ["dev"], "guards": [], "scales": [1]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "own.py").write_text("def f(rows):\n    return rows\n")
    both = ["--params", tmp_path / "params.yaml", "--instruct", world.instruct, "--data", world.data]
    for verb in ("evaluate", "sweep"):
        options = [verb, *both, "--out", tmp_path / verb]
        options += ["--delta", world.delta] if verb == "sweep" else []
        refused = shadowft(*options)
        assert (refused.code, "--allow-code-execution" in refused.err) == (7, True), refused
        assert shadowft(*options, "--allow-code-execution").code == 0


def test_functions_of_the_installed_harness_may_run(tmp_path: Path) -> None:
    copied = harness_folder() / "ifeval" / "utils.py"
    folder = write(tmp_path / "tasks", "process_results: !function utils.process_results")
    (folder / "utils.py").write_bytes(copied.read_bytes())
    assert of_harness(Function(folder, "utils.process_results"))
    (folder / "utils.py").write_bytes(copied.read_bytes() + b"\n")
    assert not of_harness(Function(folder, "utils.process_results"))
    assert of_harness(Function(harness_folder() / "gsm8k", "lm_eval.tasks.ifeval.utils.process_results"))


def test_modules_of_the_harness_that_run_text_need_the_flag_too() -> None:
    for folder, spec in (("score/math", "utils_math.process_results"), ("humaneval", "utils.pass_at_k")):
        assert not of_harness(Function(harness_folder() / folder, spec)), folder


def test_what_belongs_to_no_task_of_the_harness_needs_the_flag(tmp_path: Path) -> None:
    assert (harness_folder() / "_index.py").is_file()
    assert not of_harness(Function(harness_folder(), "_index.TaskIndex"))


@pytest.mark.parametrize("allowed", [False, True])
def test_programs_outside_the_sandbox_are_refused_even_with_the_flag(allowed: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", "unsafe_code: true")
    with pytest.raises(EvaluationError, match="without a sandbox; set `scorer: code`"):
        TaskFiles(folder, allow_code=allowed).build("mine", tmp_path, tmp_path)


TEMPLATES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__['os'].system('true') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ q|attr('__class__') }}",
    "{{ ''['__class__'].mro() }}",
    "{{ '{0.__class__.__mro__}'.format(q) }}",
    "{% set x = lipsum.__globals__ %}{{ x }}",
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_cannot_reach_python(template: str, world: World, tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", f"doc_to_text: {json.dumps('say a' + template)}")
    with pytest.raises(EvaluationError, match=r"task mine .*(SecurityError|UndefinedError|unsafe|undefined)"):
        score_instruct(world, tmp_path / "out", tasks=str(folder), domain=("mine",), guards=())
