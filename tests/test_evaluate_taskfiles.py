"""Task folders under any name: the data files that are named are read, not what their name matches as a pattern."""

import json
from pathlib import Path

import pytest

from shadowft_core.errors import EvaluationError
from shadowft_core.suites.configs import read_config
from shadowft_core.suites.taskfiles import TaskFiles

TASK = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{prompt}}"
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def write(folder: Path, files: str, **rows: str) -> Path:
    folder.mkdir()
    (folder / "mine.yaml").write_text(TASK % files, encoding="utf-8")
    for name, prompt in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n", encoding="utf-8")
    return folder


def prompts(folder: Path, place: Path) -> list[str]:
    return sorted(row["prompt"] for row in TaskFiles(folder).build("mine", place / "data", place / "cache").test_docs())


@pytest.mark.parametrize("name", ["runs [2]", 'it\'s "q" {x} (2)', "ünï → *?", "-rf", "[!a]{b}", "50% #1"])
def test_a_folder_name_is_not_a_pattern(tmp_path: Path, name: str) -> None:
    write(tmp_path / "runs 2", "rows.jsonl", rows="another's")  # which the pattern `runs [2]` matches
    assert prompts(write(tmp_path / name, "rows.jsonl", rows="mine"), tmp_path) == ["mine"]


def test_the_name_of_the_data_folder_is_not_a_pattern(tmp_path: Path) -> None:
    place = tmp_path / "work [1]"
    (place / "data").mkdir(parents=True)
    (place / "data" / "rows.jsonl").write_text('{"prompt": "held out"}\n', encoding="utf-8")
    assert prompts(write(place / "tasks", "'{data}/rows.jsonl'"), place) == ["held out"]


def test_an_existing_file_is_read_as_such_and_a_pattern_matches_several(tmp_path: Path) -> None:
    named = write(tmp_path / "named", "'rows [1].jsonl'", **{"rows [1]": "mine", "rows 1": "another's"})
    assert prompts(named, tmp_path) == ["mine"]
    several = write(tmp_path / "several [x]", "'part*.jsonl'", part1="one", part2="two", other="three")
    assert prompts(several, tmp_path) == ["one", "two"]


def test_a_duplicate_key_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", "rows.jsonl", rows="mine")
    with (folder / "mine.yaml").open("a", encoding="utf-8") as file:
        file.write("process_docs: !function mine.docs\ntest_split: train\n")
    with pytest.raises(EvaluationError, match=r"mine.yaml: duplicate key test_split, in lines 4 and 11"):
        TaskFiles(folder)


@pytest.mark.parametrize(
    ("settings", "samples"),
    [("temperature: 0.7", True), ("do_sample: true", True), ("do_sample: false, temperature: 0.0", False)],
)
def test_a_task_that_samples_is_refused(tmp_path: Path, settings: str, samples: bool) -> None:
    folder = write(tmp_path / "tasks", "rows.jsonl", rows="mine")
    with (folder / "mine.yaml").open("a", encoding="utf-8") as file:
        file.write(f"generation_kwargs: {{until: [x], {settings}}}\n")
    if samples:
        with pytest.raises(EvaluationError, match=r"task mine: samples .* scores need greedy decoding"):
            prompts(folder, tmp_path)
    else:
        assert prompts(folder, tmp_path) == ["mine"]


def test_keys_of_a_file_win_over_what_it_includes_and_null_takes_one_away(tmp_path: Path) -> None:
    folder = write(tmp_path / "tasks", "rows.jsonl", rows="mine")
    (folder / "mine.yaml").rename(folder / "base.yaml")
    text = (folder / "base.yaml").read_text(encoding="utf-8").replace("task: mine\n", "num_fewshot: 3\n")
    (folder / "base.yaml").write_text(text + "description: Read.\nrepeats: 2\n", encoding="utf-8")
    mine = "task: mine\ninclude: base.yaml\ndescription: null\nnum_fewshot: 0\n"
    (folder / "mine.yaml").write_text(mine, encoding="utf-8")
    config = TaskFiles(folder).build("mine", tmp_path, tmp_path / "cache").config
    assert (config.num_fewshot, config.description, config.repeats) == (0, "", 2)
    assert "description" not in read_config(folder / "mine.yaml")
