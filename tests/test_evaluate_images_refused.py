"""Images, models and engines with which a task about images cannot be asked: refused with the row or the setting."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import open_bench
from tests.fixtures.charts import TASK, params, score, write_tasks
from tests.fixtures.pictures import save_pictured


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"task charts: row 3: doc_to_image: png/2.png: .*/png/2.png: No such file or directory; add the image",
        ),
        ("damaged", r"task charts: row 3: doc_to_image: png/2.png: .*damaged, or no image"),
        ("text", r"task charts: row 3: doc_to_image: png/2.png: .*damaged, or no image"),
        ("huge", r"task charts: row 3: .*expected at most 64 Mi pixels, found 10000 x 10000 pixels"),
        ("folder", r"task charts: row 3: .*expected a file of at most 64 MiB"),
        ("marks", r"row 1: 1 images, but doc_to_text has 2 marks <image>"),
        ("column", r"row 1: doc_to_image: no column 'picture'; the row has imgname, query, label"),
        ("fewshot", r"num_fewshot is 1, but examples show no images"),
        ("choice", r"has output_type multiple_choice, but the harness scores only texts about images"),
        ("sound", r"doc_to_audio: audio is not supported"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_loaded(change: str, message: str, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    path = tasks / "png" / "2.png"
    if change == "missing":
        path.unlink()
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:60])
    elif change == "text":
        path.write_text("no image")
    elif change == "huge":
        Image.new("1", (10000, 10000)).save(path)
    elif change == "folder":
        path.unlink()
        path.mkdir()
    else:
        changes = {
            "marks": ("<image> ", "<image> <image> "),
            "column": ('"png/{{imgname}}"', "picture"),
            "fewshot": ("scorer: chart", "scorer: chart\nnum_fewshot: 1"),
            "choice": ("scorer: chart", "output_type: multiple_choice\ndoc_to_choice: [a, b]"),
            "sound": ("scorer: chart", "scorer: chart\ndoc_to_audio: imgname"),
        }
        (tasks / "charts.yaml").write_text(TASK.replace(*changes[change]))
    save_pictured(tmp_path / "instruct", "llava")
    (tmp_path / "instruct/model.safetensors").unlink()  # so nothing can be loaded
    with (
        pytest.raises(EvaluationError, match=message),
        open_bench(tmp_path / "instruct", tmp_path, params(tmp_path), ("charts",), ()),
    ):
        pass


SERVER = {"kind": "server", "server": {"model": "m", "url": "http://127.0.0.1:1/v1"}}


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            SERVER,
            r"task charts: shows images, which only evaluate.engine.kind: hf with one device answers, not kind: server",
        ),
        ({"devices": 2}, r"task charts: shows images, .* not devices: 2; change the engine"),
    ],
)
def test_an_engine_that_cannot_show_images_is_refused(engine: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_pictured(tmp_path / "instruct", "llava")
    write_tasks(tmp_path / "tasks")
    asked = params(tmp_path, engine=engine)
    with (
        pytest.raises(EvaluationError, match=message),
        open_bench(tmp_path / "instruct", tmp_path, asked, ("charts",), ()),
    ):
        pass


def test_a_model_without_a_processor_is_not_shown_images(tmp_path: Path) -> None:
    save_pictured(tmp_path / "instruct", "llava")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / "instruct" / name).unlink()
    write_tasks(tmp_path / "tasks")
    with (
        pytest.raises(EvaluationError, match="has no processor for images; use a vision-language model"),
        open_bench(tmp_path / "instruct", tmp_path, params(tmp_path), ("charts",), ()),
    ):
        pass


def test_a_prompt_too_long_with_its_images_is_refused_and_not_cut(tmp_path: Path) -> None:
    save_pictured(tmp_path / "instruct", "llava")
    config = json.loads((tmp_path / "instruct/config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 24
    (tmp_path / "instruct/config.json").write_text(json.dumps(config))
    write_tasks(tmp_path / "tasks")
    (tmp_path / "data").mkdir()
    with pytest.raises(EvaluationError, match=r"a prompt has \d+ tokens with its images, and the context leaves 16"):
        score(tmp_path, tmp_path / "out")
