"""Tasks that show images, on tiny vision-language models: every arm, and the harness's own answers."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shadowft_core.delta import extract
from shadowft_core.evaluate import evaluate, open_bench
from shadowft_core.grafting import Options, graft
from tests.fixtures.charts import ROWS, STOPS, TASK, draw, params, save_ending, score, write_tasks
from tests.fixtures.evaluation import read_arm

FAMILIES = ["llava", "qwen2_5_vl", "gemma3"]


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


def score_arms(pair: Path, out: Path) -> None:
    """Score the delta at scale 1 and at one half."""
    delta, grafted = pair / "delta/shadow", pair / "half"
    evaluate(pair / "instruct", pair / "data", delta, grafted, "shadow", params(pair), out)


def test_every_arm_is_shown_the_images(pair: Path, tmp_path: Path) -> None:
    scores, items = score(pair, tmp_path / "instruct")
    assert (scores["tasks"]["charts"]["n"], scores["tasks"]["charts"]["metric"]) == (3, "strict")
    assert {item["finish"] for item in items} <= {"stop", "length"}
    assert all(item["tokens"] > 0 for item in items)
    score_arms(pair, tmp_path / "arms")
    digests = {scores["model_digest"]}
    for arm in ("shadow", "shadow_scaled"):
        of_arm, its_items = read_arm(tmp_path / "arms" / arm)
        assert [item["item"] for item in its_items] == [item["item"] for item in items]
        digests.add(of_arm["model_digest"])
    assert len(digests) == 3


def test_a_grafted_arm_answers_as_its_folder_does(pair: Path, tmp_path: Path) -> None:
    score_arms(pair, tmp_path / "arms")
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
    assert len({item["about"] for item in items}) == 30  # two questions about each chart
