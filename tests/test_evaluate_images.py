"""Tasks that show images, on tiny vision-language models: every arm, the harness's own scores, and what is refused."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from shadowft_core.delta import extract
from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate import evaluate, open_bench
from shadowft_core.graft import Options, graft
from shadowft_core.params import Evaluate
from tests.fixtures.evaluation import read_arm
from tests.fixtures.pictures import WORDS, save_pictured

FAMILIES = ["llava", "qwen2_5_vl", "gemma3"]
TASK = """
task: charts
dataset_path: json
dataset_kwargs: {data_files: {test: charts.json}}
test_split: test
doc_to_image: "png/{{imgname}}"
doc_to_text: "<image> {{query}}"
doc_to_target: label
generation_kwargs: {until: STOPS, max_gen_toks: 8}
scorer: chart
"""
STOPS = [word for word in WORDS if word not in ("cat", "dog", "red", "blue", "Two")]
TASK = TASK.replace("STOPS", json.dumps(STOPS))
TEXTS = (
    TASK.replace("task: charts", "task: texts").replace('doc_to_image: "png/{{imgname}}"\n', "").replace("<image> ", "")
)
ROWS = [
    {"imgname": f"{at}.png", "query": query, "label": label}
    for at, (query, label) in enumerate([("What is it ?", "3"), ("What is it ?", "red"), ("Two cats ?", "Yes")])
]


def save_ending(folder: Path, family: str, seed: int = 0) -> Path:
    """A model that says words, and so ends most replies: the rows of other tokens in its head are 0."""
    from safetensors.torch import load_file, save_file

    file = save_pictured(folder, family, seed) / "model.safetensors"
    tensors = load_file(file)
    heads = [name for name in tensors if name.endswith("lm_head.weight")]
    head = tensors[(heads or [name for name in tensors if name.endswith("embed_tokens.weight")])[0]]
    head[:3], head[4:9], head[9 + len(WORDS) :] = 0, 0, 0
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def draw(path: Path, bars: list[int]) -> None:
    """A bar chart."""
    image = Image.new("RGB", (24, 16), "white")
    for at, height in enumerate(bars):
        ImageDraw.Draw(image).rectangle((2 + 6 * at, 15 - height, 5 + 6 * at, 15), fill=("red", "green", "blue")[at])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_tasks(folder: Path, rows: list[dict[str, Any]] = ROWS, task: str = TASK) -> Path:
    for at in range(3):
        draw(folder / "png" / f"{at}.png", [3 + 4 * at, 12 - 4 * at, 6])
    (folder / "charts.json").write_text(json.dumps(rows))
    (folder / "charts.yaml").write_text(task)
    (folder / "texts.yaml").write_text(TEXTS)
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """instruct/, tuned/, delta/shadow and half/, which is that delta grafted at half its size."""
    folder = tmp_path_factory.mktemp(request.param)
    for seed, side in enumerate(("instruct", "tuned")):
        save_ending(folder / side, request.param, seed)
    extract(folder / "instruct", folder / "tuned", folder / "delta" / "shadow", unrelated=True)
    waived = Options(waivers=["onto-base"])
    graft(folder / "instruct", [(folder / "delta" / "shadow", 0.5)], folder / "half", waived)
    write_tasks(folder / "tasks")
    (folder / "data").mkdir()
    return folder


def params(folder: Path, *domain: str, **more: Any) -> Evaluate:
    return Evaluate(
        **{"tasks": str(folder / "tasks"), "domain": domain or ("charts",), "guards": (), "max_cut": 0.99, **more}
    )


def score(folder: Path, out: Path, *domain: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    evaluate(folder / "instruct", folder / "data", None, None, "shadow", params(folder, *domain), out)
    return read_arm(out / "instruct")


def test_every_arm_is_shown_the_images(pair: Path, tmp_path: Path) -> None:
    scores, items = score(pair, tmp_path / "instruct")
    assert (scores["tasks"]["charts"]["n"], scores["tasks"]["charts"]["metric"]) == (3, "strict")
    assert {item["finish"] for item in items} <= {"stop", "length"}
    assert all(item["tokens"] > 0 for item in items)
    evaluate(
        pair / "instruct",
        pair / "data",
        pair / "delta/shadow",
        pair / "half",
        "shadow",
        params(pair),
        tmp_path / "arms",
    )
    digests = {scores["model_digest"]}
    for arm in ("shadow", "shadow_scaled"):
        of_arm, its_items = read_arm(tmp_path / "arms" / arm)
        assert [item["item"] for item in its_items] == [item["item"] for item in items]
        digests.add(of_arm["model_digest"])
    assert len(digests) == 3


def test_a_grafted_arm_answers_as_its_folder_does(pair: Path, tmp_path: Path) -> None:
    evaluate(
        pair / "instruct",
        pair / "data",
        pair / "delta/shadow",
        pair / "half",
        "shadow",
        params(pair),
        tmp_path / "arms",
    )
    grafted, its_items = read_arm(tmp_path / "arms" / "shadow_scaled")
    evaluate(pair / "half", pair / "data", None, None, "shadow", params(pair), tmp_path / "folder")
    folder, items = read_arm(tmp_path / "folder" / "instruct")
    assert grafted["model_digest"] == folder["model_digest"]
    assert items == its_items


def test_the_image_matters(pair: Path, tmp_path: Path) -> None:
    """Logits, not texts: a tiny model says the same of many images."""
    from lm_eval.api.instance import Instance

    from shadowft_core.evaluate import open_engine

    with open_bench(pair / "instruct", pair / "data", params(pair), ("charts",), ()) as bench:
        seen: list[Any] = []
        with open_engine(pair / "instruct", bench.tokenizer, params(pair)) as engine, engine.arm([], Options()) as arm:
            arm.lm.model.register_forward_hook(lambda *found: seen.append(found[2].logits[0, -1]))
            asked = bench._questions["charts"]._asked
            for at in (0, 1):
                visual = asked[at].args[2]
                arm.lm.generate_until([Instance("generate_until", {}, (*asked[0].args[:2], visual), 0)])
    half = len(seen) // 2
    assert not seen[0].equal(seen[half])


def test_the_scores_are_those_of_the_bare_harness(tmp_path: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.hf_vlms import HFMultimodalLM
    from transformers import AutoModelForImageTextToText

    from shadowft_core.evaluate.quiet import quiet

    folder = save_ending(tmp_path / "instruct", "llava")
    write_tasks(tmp_path / "tasks")
    (tmp_path / "data").mkdir()
    _, items = score(tmp_path, tmp_path / "out")
    with quiet():
        model = AutoModelForImageTextToText.from_pretrained(folder)
        bare = HFMultimodalLM(pretrained=model, batch_size=64)
        requests = []
        for at, row in enumerate(ROWS):
            prompt = bare.apply_chat_template([{"role": "user", "content": f"<image> {row['query']}"}])
            image = Image.open(tmp_path / "tasks/png" / row["imgname"]).convert("RGB")
            settings = {"until": STOPS, "max_gen_toks": 8, "do_sample": False}
            requests.append(Instance("generate_until", row, (prompt, settings, {"visual": [image]}), at))
        answers = bare.generate_until(requests)
    assert sorted(item["output"] for item in items) == sorted(answers)
    assert {item["prompt"] for item in items} == {request.args[0] for request in requests}


def test_texts_are_scored_on_a_vision_language_model_as_ever(pair: Path, tmp_path: Path) -> None:
    """A task without images gets the answers of the harness's model for texts, also beside a task with images."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForImageTextToText

    from shadowft_core.evaluate.quiet import quiet
    from shadowft_core.rendering import load_tokenizer

    _, items = score(pair, tmp_path / "out", "charts", "texts")
    texts = [item for item in items if item["task"] == "texts"]
    with quiet():
        model = AutoModelForImageTextToText.from_pretrained(pair / "instruct")
        tokenizer = load_tokenizer(pair / "instruct")
        bare = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=64, add_bos_token=False)
        settings = {"until": STOPS, "max_gen_toks": 8, "do_sample": False}
        requests = [Instance("generate_until", {}, (item["prompt"], settings), 0) for item in texts]
        assert [item["output"] for item in texts] == bare.generate_until(requests)


def test_another_image_is_another_item(tmp_path: Path) -> None:
    save_ending(tmp_path / "instruct", "llava")
    write_tasks(tmp_path / "tasks")
    (tmp_path / "data").mkdir()
    before = {item["item"] for item in score(tmp_path, tmp_path / "one")[1]}
    draw(tmp_path / "tasks/png/2.png", [1, 1, 1])
    after = {item["item"] for item in score(tmp_path, tmp_path / "two")[1]}
    assert len(before & after) == 2


def test_the_generated_charts_are_asked(tmp_path: Path) -> None:
    if not (found := os.environ.get("SHADOWFT_EVAL_DATA")):
        pytest.skip("needs SHADOWFT_EVAL_DATA, a folder with chart_qa_generated/")
    save_ending(tmp_path / "instruct", "qwen2_5_vl")
    shutil.copytree(Path(found) / "chart_qa_generated", tmp_path / "tasks")
    (tmp_path / "tasks/charts.yaml").write_text(TASK.replace("charts.json", "chart_qa.json"))
    (tmp_path / "data").mkdir()
    scores, items = score(tmp_path, tmp_path / "out")
    rows = json.loads((tmp_path / "tasks/chart_qa.json").read_text())
    assert scores["tasks"]["charts"]["n"] == len(items) == len(rows) == 60
    assert len({item["cluster"] for item in items}) == 30  # two questions about each chart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"task charts: row 3: doc_to_image: png/2.png: .*/png/2.png: No such file or directory; bring the image",
        ),
        ("damaged", r"task charts: row 3: doc_to_image: png/2.png: .*damaged, or no image"),
        ("text", r"task charts: row 3: doc_to_image: png/2.png: .*damaged, or no image"),
        ("huge", r"task charts: row 3: .*expected at most 64 Mi pixels, found 10000 x 10000 pixels"),
        ("folder", r"task charts: row 3: .*expected a file of at most 64 MiB"),
        ("marks", r"row 1: 1 images, but doc_to_text has 2 marks <image>"),
        ("column", r"row 1: doc_to_image: no column 'picture'; the row has imgname, query, label"),
        ("fewshot", r"num_fewshot is 1, but examples show no images"),
        ("choice", r"has output_type multiple_choice, but the harness scores only texts about images"),
        ("sound", r"doc_to_audio: sound is not supported"),
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
