"""Rows with images: every usual shape, the copied images, and every image that is refused."""

import base64
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shadowft_core.errors import DataError
from shadowft_core.files import bytes_digest, canonical_json
from shadowft_core.params import Newest, Prepare
from shadowft_core.prepare.tracked import content_of
from tests.fixtures.data import Stage, lines, talk
from tests.fixtures.pictures import picture

CAT, DOG = picture(1), picture(2, "JPEG")
URL = "data:image/png;base64," + base64.b64encode(CAT).decode()
NAMES = [f"{hashlib.sha256(CAT).hexdigest()}.png", f"{hashlib.sha256(DOG).hexdigest()}.jpg"]


def asked(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat"}]} | more


def shared(value: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A cat"}]} | more


TEXT, MARK = {"type": "text", "text": "What?"}, {"type": "image"}
# row, content of the user turn, places of the images, number of images
SHAPES: dict[str, tuple[dict[str, Any], str, list[int]]] = {
    "OpenAI": (asked([{"type": "image_url", "image_url": {"url": URL}}, TEXT]), "What?", [0]),
    "OpenAI, a file": (asked([TEXT, {"type": "image_url", "image_url": {"url": "cat.png"}}]), "What?", [5]),
    "transformers": (asked([TEXT, MARK | {"image": "cat.png"}]), "What?", [5]),
    "transformers, url": (asked([MARK | {"url": "./cat.png"}, TEXT]), "What?", [0]),
    "base64": (asked([MARK | {"base64": base64.b64encode(CAT).decode()}, TEXT]), "What?", [0]),
    "TRL": (asked([MARK, TEXT, MARK, TEXT], images=["cat.png", "a/dog.jpg"]), "What?What?", [0, 5]),
    "TRL, an index": (asked([MARK | {"index": 0}, TEXT], images=["cat.png"]), "What?", [0]),
    "TRL without a mark": (asked("What?", images=["cat.png", "a/dog.jpg"]), "What?", [0, 0]),
    "only an image": (asked([MARK], images=["cat.png"]), "", [0]),
    "LLaVA": (shared("<image>\nWhat?", image="cat.png"), "\nWhat?", [0]),
    "LLaMA-Factory": (
        shared("One <image>, two\r\n<image>?", images=["cat.png", "a/../a/dog.jpg"]),
        "One , two\n?",
        [4, 10],
    ),
    "of a turn": (
        {
            "messages": [
                {"role": "user", "content": "What?", "images": ["cat.png"]},
                {"role": "assistant", "content": "A cat"},
            ]
        },
        "What?",
        [0],
    ),
    "question and answer": ({"question": "What?", "answer": "A cat", "image": "cat.png"}, "What?", [0]),
    "TRL, prompt and completion": (
        {"prompt": asked("What?")["messages"][:1], "completion": asked("")["messages"][1:], "images": ["cat.png"]},
        "What?",
        [0],
    ),
}


@pytest.fixture
def stage(stage: Stage) -> Stage:
    (stage.data / "a").mkdir()
    (stage.data / "cat.png").write_bytes(CAT)
    (stage.data / "a/dog.jpg").write_bytes(DOG)
    return stage


@pytest.mark.parametrize(("row", "content", "places"), SHAPES.values(), ids=SHAPES)
def test_every_shape_keeps_its_images_and_their_places(
    stage: Stage, row: dict[str, Any], content: str, places: list[int]
) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row]))
    report = stage.run()
    (found,) = stage.split()
    said = {"role": "assistant", "content": "A cat"}
    assert found["messages"] == [{"role": "user", "content": content, "image_places": places}, said]
    assert found["images"] == NAMES[: len(places)]
    assert f"sha256:{found['id']}" == bytes_digest(canonical_json({k: found[k] for k in ("messages", "images")}))
    kept = {path.name: path.read_bytes() for path in (stage.out / "images").iterdir()}
    assert kept == dict(zip(NAMES, (CAT, DOG), strict=False)) if len(places) == 2 else {NAMES[0]: CAT}
    assert (report["images"], report["fields_ignored"]) == (len(places), {})


@pytest.mark.parametrize("form", ["struct", "struct with a path", "bytes"])
def test_images_of_a_parquet_file(stage: Stage, form: str) -> None:
    value = {
        "struct": {"bytes": CAT, "path": "x.png"},
        "struct with a path": {"bytes": None, "path": "cat.png"},
        "bytes": CAT,
    }
    turns = [{"role": "user", "content": [MARK | {"text": None}, TEXT]}, {"role": "assistant", "content": [TEXT]}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "images": [value[form]]}]), stage.data / "rows.parquet")
    stage.run()
    (found,) = stage.split()
    assert (found["images"], found["messages"][0]["image_places"]) == (NAMES[:1], [0])


def test_the_ids_of_rows_without_images_are_as_before(stage: Stage) -> None:
    rows = [talk("<image> is an HTML tag"), asked("What?", images=["cat.png"]), asked("What?", images=["a/dog.jpg"])]
    (stage.data / "rows.jsonl").write_bytes(lines([*rows, rows[1]]))
    report = stage.run()
    plain, *pictured = stage.split()
    assert f"sha256:{plain['id']}" == bytes_digest(canonical_json(rows[0]["messages"]))
    assert plain["images"] is None
    assert pictured[0]["id"] != pictured[1]["id"]
    assert (report["duplicates"], report["files_not_read"]) == (1, [])


def test_the_images_of_a_row_decide_its_split_and_unused_ones_are_not_kept(stage: Stage) -> None:
    """One question about many images is in every split, one image in a single split."""
    rows = []
    for number in range(60):
        (stage.data / f"{number}.png").write_bytes(picture(number))
        rows += [asked("What?", images=[f"{number}.png"]), asked("Where?", images=[f"{number}.png"])]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    report = stage.run(Prepare(data="-", valid=0.2, dev=0.2, test=0.2, max_rows=40, near=0.8))
    names = [{row["images"][0] for row in stage.split(split)} for split in ("train", "valid", "dev", "test")]
    assert all(names)
    assert len(set().union(*names)) == sum(map(len, names)) == report["images"] < 60
    assert {path.name for path in (stage.out / "images").iterdir()} == set().union(*names)


def test_rows_of_equal_words_about_other_images_are_no_near_duplicates(stage: Stage) -> None:
    words = " ".join(f"word{number}" for number in range(40))
    rows = [asked(words, images=["cat.png"]), asked(words, images=["a/dog.jpg"]), asked(words)]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    stage.run(Prepare(data="-", valid=0, near=0.8))
    assert len(stage.split()) == 3


def bomb() -> bytes:
    """A PNG of a few bytes whose header has 100,000 by 100,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = (head, b"IDAT" + zlib.compress(b"\0" * 99), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts
    )


def moving() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in (1, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


BAD: dict[str, tuple[Any, str]] = {  # value of `image`, reason
    "missing": ("none.png", "no such image file"),
    "below a file": ("cat.png/x.png", "no such image file"),
    "absolute": ("/etc/passwd", "an absolute path"),
    "absolute, Windows": ("C:\\cat.png", "an absolute path"),
    "parent": ("../out.png", "the path leaves the folder of the data file"),
    "parent, hidden": ("a/../../out.png", "the path leaves the folder of the data file"),
    "link": ("link.png", "the path leaves the folder of the data file by a symbolic link"),
    "link, folder": ("outside/out.png", "the path leaves the folder of the data file by a symbolic link"),
    "link, loop": ("loop.png", "the path is not readable"),
    "URL": ("https://example.org/cat.png", "a URL"),
    "URL, upper case": (" HTTP://example.org/cat.png", "a URL"),
    "URL of a file": ("file:///etc/passwd", "a URL"),
    "NUL": ("cat.png\0.jpg", "NUL in the path"),
    "long": ("x" * 5000, "the path is not readable: File name too long"),
    "surrogate": ("\ud83d.png", "the path is not readable"),
    "folder": ("a", "the path is not a file"),
    "pipe": ("pipe", "the path is not a file"),
    "empty": ("empty.png", "the image file is empty"),
    "text": ("text.png", "not readable as an image"),
    "cut": ("cut.png", "not readable as an image"),
    "PostScript": ("page.png", "not readable as an image"),
    "bomb": ("bomb.png", "the image has more than 64 Mi pixels"),
    "moving": ("moving.gif", "the image has more than one frame"),
    "data URL, text": ("data:text/plain,cat", "a data: URL that is not base64"),
    "data URL, damaged": ("data:image/png;base64,@@", "a data: URL that is not valid base64"),
    "data URL, text inside": ("data:image/png;base64,Y2F0", "not readable as an image"),
    "number": (3, "expected a path, a data: URL or bytes"),
    "object": ({"width": 3}, "expected a path, a data: URL or bytes"),
}


@pytest.mark.parametrize(("value", "reason"), BAD.values(), ids=BAD)
def test_a_bad_image_drops_its_row_with_field_line_and_reason(stage: Stage, value: Any, reason: str) -> None:
    outside = stage.data.parent / "outside"
    outside.mkdir()
    for path in (outside / "out.png", stage.data.parent / "out.png"):
        path.write_bytes(CAT)
    (stage.data / "link.png").symlink_to(outside / "out.png")
    (stage.data / "outside").symlink_to(outside)
    (stage.data / "loop.png").symlink_to("loop.png")
    os.mkfifo(stage.data / "pipe")
    files = {
        "empty.png": b"",
        "text.png": b"cat",
        "cut.png": picture(size=(300, 200))[:-40],
        "bomb.png": bomb(),
        "moving.gif": moving(),
    }
    for name, content in (files | {"page.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}).items():
        (stage.data / name).write_bytes(content)
    (stage.data / "rows.jsonl").write_bytes(lines([talk("hi"), shared("<image>", image=value)]))
    report = stage.run()
    (dropped,) = report["dropped"]
    assert (dropped["file"], dropped["line"]) == ("rows.jsonl", 2)
    assert dropped["reason"].startswith(f"field 'image': {reason}")
    assert (report["images"], report["rows_used"]) == (0, 1)
    assert not (stage.out / "images").exists()


def test_a_photo_with_a_preview_behind_it_is_one_image(stage: Stage) -> None:
    """Many phones and cameras write such files (MPO), named .jpg."""
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (1, 200)]
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    (stage.data / "photo.jpg").write_bytes(file.getvalue())
    (stage.data / "rows.jsonl").write_bytes(lines([asked("What?", images=["photo.jpg"])]))
    stage.run()
    assert stage.split()[0]["images"] == [f"{hashlib.sha256(file.getvalue()).hexdigest()}.jpg"]


MISPLACED = {
    "field 'images': 1 images, but 2 marks for images": asked("<image><image>", images=["cat.png"]),
    "field 'image': 2 images, but 1 marks for images": shared("<image>", image=["cat.png", "cat.png"]),
    "field 'content': 0 images, but 1 marks for images": asked([MARK, TEXT]),
    "field 'content': the images are not in the order of their 'index'": asked(
        [MARK | {"index": 1}], images=["cat.png"]
    ),
    "an image in a turn of the role 'assistant'": {
        "messages": [*asked("hi")["messages"][:1], {"role": "assistant", "content": [MARK | {"url": "cat.png"}]}]
    },
    "field 'images': 2 images, but 1 marks for images": {
        "messages": [
            {"role": "user", "content": "<image>", "images": ["cat.png"] * 2},
            {"role": "assistant", "content": "x"},
        ]
    },
    "U+FDD1 in 'content'": asked([MARK | {"url": "cat.png"}, {"type": "text", "text": "\ufdd1"}]),
    "unsupported field 'video'": asked("hi", video="cat.mp4"),
    "unsupported part 'video' of 'content'": asked([{"type": "video", "video": "cat.mp4"}]),
}


@pytest.mark.parametrize(("reason", "row"), MISPLACED.items(), ids=MISPLACED)
def test_images_without_a_place_drop_their_row(stage: Stage, reason: str, row: dict[str, Any]) -> None:
    (stage.data / "rows.jsonl").write_bytes(lines([row]))
    with pytest.raises(DataError, match="none of 1 rows is usable") as error:
        stage.run()
    assert f"rows.jsonl:1 {reason}" in str(error.value)


def test_rows_with_images_of_an_earlier_version_are_not_new(stage: Stage) -> None:
    rows = [asked("What?", images=["cat.png"]), talk("one"), talk("two"), talk("three")]
    (stage.data / "rows.jsonl").write_bytes(lines(rows))
    earlier = stage.data.parent / "earlier"
    shutil.copytree(stage.data, earlier)
    (stage.data / "rows.jsonl").write_bytes(lines([asked("What?", images=["a/dog.jpg"]), *rows]))
    newest = Newest(since=str(earlier), digest=content_of(earlier).digest)
    stage.run(Prepare(data="-", valid=0, dev=0, test=0.2, newest=newest))
    assert [row["images"] for row in stage.split("test")] == [NAMES[1:]]


def test_paths_are_relative_to_the_data_file(stage: Stage) -> None:
    (stage.data / "a/rows.jsonl").write_text(json.dumps(asked("What?", images=["dog.jpg"])))
    stage.run()
    assert stage.split()[0]["images"] == NAMES[1:]


def test_an_image_above_the_limit_of_bytes_is_not_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadowft_core.prepare.images.IMAGE_BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("the file was read"))
    (stage.data / "rows.jsonl").write_bytes(lines([asked("What?", images=["cat.png"]), talk("hi")]))
    report = stage.run()
    assert "larger than" in report["dropped"][0]["reason"]
