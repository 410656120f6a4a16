"""Rows with images from data files to an extracted delta, on tiny models of four families."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shadowft_core.delta import extract, require_extractable
from shadowft_core.errors import DataError, TrainError
from shadowft_core.params import Prepare, Render, Train
from shadowft_core.prepare import prepare
from shadowft_core.rendering import IGNORED, RowError, load_renderer, prepared_rows
from shadowft_core.train import train
from tests.fixtures.data import lines, talk
from tests.fixtures.pictures import picture, save_pictured
from tests.fixtures.training import SETTINGS

VISION = re.compile(r"vis|projector|connector|merger")
FAMILIES = ("qwen2_5_vl", "llava", "gemma3", "idefics3")
ONE_STEP = SETTINGS.model_copy(update={"max_length": 200, "batch_size": 4, "max_steps": 2})
ROWS = [
    {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it ?"}]},
            {"role": "assistant", "content": "A cat"},
        ],
        "images": ["0.png"],
    },
    {
        "messages": [
            {"role": "user", "content": "Look <image> What is it ?"},
            {"role": "assistant", "content": "A dog"},
            {"role": "user", "content": "What is <image> ?"},
            {"role": "assistant", "content": "Two cats"},
        ],
        "images": ["1.png", "2.png"],
    },
    talk("What is red ?", "A dog"),
    talk("What is blue ?", "A cat"),
]
REPLIES = ["A cat <|im_end|>", "A dog <|im_end|> Two cats <|im_end|>", "A dog <|im_end|>", "A cat <|im_end|>"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows with images and two without, prepared."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "rows").mkdir()
    for number, size in enumerate([(16, 16), (24, 16), (40, 24)]):
        (folder / f"rows/{number}.png").write_bytes(picture(number, size=size))
    (folder / "rows/rows.jsonl").write_bytes(lines(ROWS))
    prepare(folder / "rows", None, Prepare(data="-", valid=0), folder / "data")
    return folder / "data"


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    for seed, side in enumerate(("base", "instruct")):
        save_pictured(folder / side, request.param, seed)
    return folder


def test_the_reply_is_learned_and_no_image_token_is(pair: Path, data: Path) -> None:
    renderer = load_renderer(pair / "instruct", Render())
    assert renderer.processor is not None
    for (messages, tools, *_), learned in zip(prepared_rows(data / "train.parquet"), REPLIES, strict=True):
        [sample] = renderer.samples(messages, tools)
        assert [path.exists() for path in sample.images] == [True] * len(sample.images)
        images = [at for at, token in enumerate(sample.input_ids) if token in renderer.processor.image_ids]
        assert len(images) >= 4 * len(sample.images)
        assert all(sample.labels[at] == IGNORED for at in images)
        assert renderer.tokenizer.decode([label for label in sample.labels if label != IGNORED]) == learned
        plain = [token for token in sample.input_ids if token not in (5, 6, 7)]
        said = [one["content"].split() for one in messages]
        shown = renderer.tokenizer.decode(plain).replace("<|im_start|>", "").replace("<|im_end|>", "").split()
        assert [word for word in shown if word not in ("user", "assistant")] == [word for one in said for word in one]


def test_the_ids_are_those_of_the_processor(pair: Path, data: Path) -> None:
    from PIL import Image

    renderer = load_renderer(pair / "instruct", Render())
    messages, *_ = next(prepared_rows(data / "train.parquet"))
    [sample] = renderer.samples(messages)
    shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it ?"}]}, messages[1]]
    text = renderer.tokenizer.apply_chat_template(shown, tokenize=False)
    image = Image.open(sample.images[0]).convert("RGB")
    found = renderer.processor._processor(text=[text], images=[[image]], add_special_tokens=False)  # type: ignore[union-attr]
    assert sample.input_ids == list(found["input_ids"][0])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_rows_with_and_without_images_train_and_their_delta_is_extracted(
    pair: Path, data: Path, tmp_path: Path, method: str
) -> None:
    settings = ONE_STEP.model_copy(update={"method": method})
    facts = tuned(pair, data, tmp_path / "one", settings)
    assert (facts["steps"], facts["rows"]["train"]["rows"], facts["rows"]["train"]["images"]) == (2, 4, 3)
    extract(pair / "base", tmp_path / "one", tmp_path / "delta")
    changed = json.loads((tmp_path / "delta/delta.json").read_text())
    assert changed["tensors"]
    assert not [name for name in changed["tensors"] if VISION.search(name)], "tower and projector stay as they are"
    tuned(pair, data, tmp_path / "two", settings)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()} for name in ("one", "two")
    )
    assert one == two


def tuned(pair: Path, data: Path, out: Path, settings: Train) -> dict[str, Any]:
    train(pair / "base", pair / "instruct", data, settings, out, require_extractable)
    facts: dict[str, Any] = json.loads((out / "train.json").read_text())
    return facts


def test_batches_are_mixed_and_hold_what_the_model_sees(pair: Path, data: Path, tmp_path: Path) -> None:
    from shadowft_core.train.encode import encode_file
    from shadowft_core.train.models import load_model
    from shadowft_core.train.trainer import make_trainer

    renderer = load_renderer(pair / "instruct", Render())
    rows = encode_file(data / "train.parquet", renderer, 200, images=True)
    network = load_model(pair / "base", renderer.tokenizer, images=True)
    trainer = make_trainer(network, renderer.tokenizer, rows, ONE_STEP, tmp_path, renderer.processor)
    [batch] = trainer.get_train_dataloader()
    heads: list[int] = []
    hook = network.get_output_embeddings().register_forward_hook(lambda *_: heads.append(1))
    assert trainer.compute_loss(network, {**batch}) > 0
    hook.remove()
    assert not heads, "TRL takes the loss from the hidden states, without whole logits"
    assert len(batch["input_ids"]) == 4
    assert "pixel_values" in batch
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        at = [row.tolist() == ids[: len(row)].tolist() for row in rows.input_ids].index(True)
        assert labels[: len(rows.labels[at])].tolist() == rows.labels[at].tolist()
        assert set(labels[len(rows.labels[at]) :].tolist()) <= {IGNORED}


def test_an_end_token_that_the_template_does_not_write_is_learned(data: Path, tmp_path: Path) -> None:
    """The template of LLaVA 1.5 is an example."""
    pair = tmp_path
    for side in ("base", "instruct"):
        save_pictured(pair / side, "llava", end=" ")
    renderer = load_renderer(pair / "instruct", Render())
    messages, *_ = next(prepared_rows(data / "train.parquet"))
    [sample] = renderer.samples(messages)
    assert renderer.tokenizer.decode([label for label in sample.labels if label != IGNORED]) == "A cat <|im_end|>"
    assert tuned(pair, data, tmp_path / "out", ONE_STEP)["rows"]["train"]["images"] == 4


def test_the_template_may_be_that_of_the_processor(pair: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "instruct", tmp_path / "old")
    template = (tmp_path / "old/chat_template.jinja").read_text()
    (tmp_path / "old/chat_template.jinja").unlink()
    (tmp_path / "old/chat_template.json").write_text(json.dumps({"chat_template": template}))
    messages, *_ = next(prepared_rows(data / "train.parquet"))
    old, new = (load_renderer(folder, Render()) for folder in (tmp_path / "old", pair / "instruct"))
    assert old.samples(messages) == new.samples(messages)


def test_a_system_text_that_is_folded_moves_the_image(data: Path, tmp_path: Path) -> None:
    """With a template without system turns: the text goes before the question, the image keeps its place in it."""
    folder = save_pictured(tmp_path / "instruct", "llava")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        template.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    )
    renderer = load_renderer(folder, Render(system="fold"))
    _, (messages, *_), *_ = prepared_rows(data / "train.parquet")
    [sample] = renderer.samples([{"role": "system", "content": "dog"}, *messages])
    assert "<|im_start|> user dog\n\nLook <image> What is it ?" in sample.text


@pytest.mark.parametrize("split", ["valid", "replay"])
def test_images_of_other_splits_train_too(pair: Path, data: Path, tmp_path: Path, split: str) -> None:
    """Only text in train.parquet, images in another file."""
    shutil.copytree(data, tmp_path / "data")
    whole = pq.read_table(data / "train.parquet")
    pq.write_table(whole.slice(2), tmp_path / "data/train.parquet")
    pq.write_table(whole, tmp_path / f"data/{split}.parquet")
    facts = tuned(pair, tmp_path / "data", tmp_path / "out", ONE_STEP)
    assert (facts["rows"]["train"]["images"], facts["rows"][split]["images"]) == (0, 3)


def test_a_processor_that_does_not_report_places_is_refused(pair: Path, data: Path) -> None:
    renderer = load_renderer(pair / "instruct", Render())
    assert renderer.processor is not None
    inner = renderer.processor._processor
    renderer.processor._processor = lambda **given: {
        name: value for name, value in inner(**given).items() if name != "text_replacement_offsets"
    }
    messages, *_ = next(prepared_rows(data / "train.parquet"))
    with pytest.raises(RowError, match="does not report where it puts images"):
        renderer.samples(messages)


def test_a_batch_that_the_processor_refuses_ends_the_training(pair: Path) -> None:
    from shadowft_core.train.images import ImageCollator

    processor = load_renderer(pair / "instruct", Render()).processor
    assert processor is not None
    with pytest.raises(TrainError, match=r"the processor refuses the conversation.*; set train\.batch_size to 1"):
        ImageCollator(processor, 1)([{"text": f"{processor.token} What", "files": [], "input_ids": [1], "labels": [1]}])


def test_a_missing_image_ends_the_training(pair: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    next((tmp_path / "data/images").iterdir()).unlink()
    with pytest.raises(DataError, match=r"images/.*png: not readable: No such file.*; run `shadowft prepare` again"):
        train(pair / "base", pair / "instruct", tmp_path / "data", ONE_STEP, tmp_path / "out")


def test_a_model_without_a_processor_takes_no_images(pair: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "instruct", tmp_path / "text", ignore=shutil.ignore_patterns("*processor_config.json"))
    renderer = load_renderer(tmp_path / "text", Render())
    rows = list(prepared_rows(data / "train.parquet"))
    with pytest.raises(RowError, match="the model takes no images"):
        renderer.samples(rows[0][0])
    assert renderer.samples(rows[2][0])
    strict = ONE_STEP.model_copy(update={"max_left_out": 0.4})
    with pytest.raises(TrainError, match=r"2 the model takes no images \(rows\.jsonl:1\)"):
        train(pair / "base", tmp_path / "text", data, strict, tmp_path / "out")


def test_rows_with_images_are_left_out_of_heldout(
    pair: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shadowft_core.evaluate.heldout import render_heldout

    (tmp_path / "data").mkdir()
    (tmp_path / "data/test.parquet").write_bytes((data / "train.parquet").read_bytes())
    render_heldout(load_renderer(pair / "instruct", Render()), tmp_path / "data", tmp_path / "out")
    assert pq.read_metadata(tmp_path / "out/test.parquet").num_rows == 2
    assert "left out 2 rows with images, because the harness scores only text" in capsys.readouterr().err


def test_a_photo_is_shown_upright(tmp_path: Path) -> None:
    """Phones store the sensor's picture, and its rotation in EXIF data."""
    from io import BytesIO

    from PIL import Image

    processor = load_renderer(save_pictured(tmp_path / "instruct", "llava"), Render()).processor
    assert processor is not None
    upright = Image.open(BytesIO(picture(1, size=(24, 16))))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    shown = [tmp_path / "upright.png"], [tmp_path / "turned.png"]
    one, two = (processor.tensors([processor.token], [files])["pixel_values"] for files in shown)
    assert one.tolist() == two.tolist()
