"""Images of a task: what `doc_to_image` names is found next to the data file and checked before a model is loaded."""

import io
import stat
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.files import bytes_digest
from shadowft_core.limits import IMAGE_BYTES, IMAGE_PIXELS

MARK = "<image>"  # in doc_to_text, the place of an image


class Picture(str):
    """An image of an item: the digest of its file as a text, which names it in prompts' digests, and its `path`."""

    path: Path

    def __new__(cls, digest: str, path: Path) -> "Picture":
        picture = super().__new__(cls, digest)
        picture.path = path
        return picture

    def __reduce__(self) -> tuple[Any, ...]:
        return Picture, (str(self), self.path)


def with_images(
    name: str, path: Path, config: dict[str, Any], files: Iterable[str], cache: Path
) -> tuple[dict[str, Any], Callable[[Any], None]]:
    """A task's config whose `doc_to_image` gives Pictures, and the function that checks those of a built task.

    `doc_to_image` is a column, a template such as `png/{{imgname}}`, or a list of these. A value is a path relative to
    the folder of the data file, or the image itself, as parquet files hold it. `files` are the patterns of the data.

    Raises EvaluationError for a task that asks for something else than texts, shows images in few-shot examples, or
    reads sound; the function for an image that is missing, damaged or too large, with its row, and for a row whose
    number of marks is not that of its images.
    """
    if config.get("doc_to_audio"):
        raise EvaluationError(f"{path}: doc_to_audio: audio is not supported; remove the task")
    wanted = config.get("doc_to_image")
    if wanted is None:
        return config, lambda task: None
    if config.get("output_type", "generate_until") != "generate_until":
        raise EvaluationError(
            f"{path}: a task with images has output_type {config['output_type']}, but the harness scores only texts "
            "about images; set generate_until"
        )
    if config.get("num_fewshot"):
        raise EvaluationError(f"{path}: num_fewshot is {config['num_fewshot']}, but examples show no images; set 0")
    folders = sorted({str(Path(file).parent) for file in files})
    known: dict[Any, Picture] = {}

    def doc_to_image(doc: Any) -> list[Picture]:
        return [_picture(value, folders, cache, known) for value in _values(doc, wanted)]

    def check(task: Any) -> None:
        for at, doc in enumerate(task.eval_docs):
            try:
                shown = len(doc_to_image(doc))
            except (EvaluationError, KeyError, OSError) as error:
                raise EvaluationError(f"task {name}: row {at + 1}: doc_to_image: {error}") from None
            if (marks := str(task.doc_to_text(doc)).count(MARK)) != shown:
                raise EvaluationError(
                    f"task {name}: row {at + 1}: {shown} images, but doc_to_text has {marks} marks {MARK}; put one "
                    "where each image belongs"
                )

    return config | {"doc_to_image": doc_to_image}, check


def _values(doc: Any, wanted: Any) -> list[Any]:
    """The images that a document names, without those that are null."""
    from lm_eval.utils import apply_template

    if callable(wanted):
        found = wanted(doc)
    elif isinstance(wanted, list):
        found = [value for one in wanted for value in _values(doc, one)]
    elif "{{" in str(wanted):
        found = apply_template(wanted, doc)
    elif wanted in doc:
        found = doc[wanted]
    else:
        raise EvaluationError(f"no column {wanted!r:.60}; the row has {', '.join(map(str, doc)):.300}")
    return [one for one in (found if isinstance(found, list) else [found]) if one is not None]


def _picture(value: Any, folders: list[str], cache: Path, known: dict[Any, Picture]) -> Picture:
    if isinstance(value, dict):  # as datasets writes an image to parquet
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return _kept(value, cache)
    if value not in known:
        if not Path(value).is_absolute() and len(folders) != 1:
            raise EvaluationError(
                f"{value}: is relative to more than one data folder ({', '.join(folders):.300}); keep the data in one"
            )
        file = Path(value) if Path(value).is_absolute() else Path(folders[0], value)
        known[value] = Picture(bytes_digest(_checked(value, file)), file)
    return known[value]


def _kept(value: Any, cache: Path) -> Picture:
    """An image that stands in the data itself, as a file in the cache."""
    if hasattr(value, "save"):
        buffer = io.BytesIO()
        value.convert("RGB").save(buffer, "PNG")
        value = buffer.getvalue()
    if not isinstance(value, bytes):
        raise EvaluationError(f"{value!r:.100}: neither a path nor an image")
    _decode("the image in the data", value)
    digest = bytes_digest(value)
    file = cache / "pictures" / digest.partition(":")[2]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(value)
    return Picture(digest, file)


def _checked(value: str, file: Path) -> bytes:
    try:
        about = file.stat()
    except OSError as error:
        raise EvaluationError(f"{value}: {file}: {error.strerror}; add the image or correct the row") from None
    if not stat.S_ISREG(about.st_mode) or about.st_size > IMAGE_BYTES:
        raise EvaluationError(
            f"{value}: {file}: expected a file of at most {IMAGE_BYTES >> 20} MiB, found {about.st_size} bytes; make "
            "it smaller or correct the row"
        )
    data = file.read_bytes()
    _decode(f"{value}: {file}", data)
    return data


def _decode(name: str, data: bytes) -> None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
                if size[0] * size[1] <= IMAGE_PIXELS:
                    image.load()
                    return
        found = f"{size[0]} x {size[1]} pixels"
    except Image.DecompressionBombError:
        found = "more"
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise EvaluationError(f"{name}: damaged, or no image ({type(error).__name__}); replace it") from None
    raise EvaluationError(f"{name}: expected at most {IMAGE_PIXELS >> 20} Mi pixels, found {found}; make it smaller")
