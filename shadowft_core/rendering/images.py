"""The processor of a vision-language model: puts image tokens into a text, and makes the tensors of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowft_core.errors import CheckpointError, DataError
from shadowft_core.files import read_json_object
from shadowft_core.loading import load
from shadowft_core.rendering.template import RowError

_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Expanded:
    """A text with image tokens. `offsets` has for each id its characters (start, end) in `text`."""

    text: str
    input_ids: list[int]
    offsets: list[tuple[int, int]]
    spans: list[tuple[int, int, int]]
    """for each image its characters (start, end) in the original text, and the characters added there"""

    def place(self, at: int) -> int:
        """The new position of character `at` of the original text."""
        return at + sum(grown for _, end, grown in self.spans if end <= at)


class Processor:
    """A processor of transformers. `token` marks an image in the text of the chat template."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.token: str = processor.image_token
        self.image_ids = {int(one) for one in processor.image_token_ids if one is not None}
        """the ids that the model replaces with parts of images"""

    def expand(self, text: str, images: Sequence[Path]) -> Expanded:
        """The text as the model reads it, with its ids.

        Raises RowError if the text does not show each image once, or the processor refuses them; DataError if a file is
        not readable.
        """
        if text.count(self.token) != len(images):
            raise RowError(f"the chat template shows {text.count(self.token)} of {len(images)} images")
        found = self._call(
            [text], [images], return_offsets_mapping=True, return_text_replacement_offsets=True, padding=False
        )
        if "text_replacement_offsets" not in found:
            raise RowError(f"{type(self._processor).__name__} does not report where it puts images")
        moves = found["text_replacement_offsets"][0]
        pieces, last = [], 0
        for move in moves:
            start, end = move["span"]
            pieces += [text[last:start], move["replacement"]]
            last = end
        return Expanded(
            "".join([*pieces, text[last:]]),
            [int(one) for one in found["input_ids"][0]],
            [(int(start), int(end)) for start, end in found["offset_mapping"][0]],
            [(*move["span"], len(move["replacement"]) - len(move["text"])) for move in moves],
        )

    def tensors(self, texts: Sequence[str], images: Sequence[Sequence[Any]], side: str = "right") -> dict[str, Any]:
        """The model's inputs for a batch of texts, padded on one side: ids, mask and the tensors of the images.

        An image is a path, or what `opened` gives.
        """
        shown = list(images) if any(images) else None
        return dict(self._call(list(texts), shown, return_tensors="pt", padding=True, padding_side=side))

    @staticmethod
    def opened(image: Any) -> Any:
        """An image as transformers reads it: rotated by its EXIF orientation, in RGB. Raises DataError."""
        return _opened(image) if isinstance(image, Path) else image

    def _call(self, texts: list[str], images: Sequence[Sequence[Any]] | None, **options: Any) -> Mapping[str, Any]:
        pictures = None if images is None else [[self.opened(image) for image in row] for row in images]
        try:
            found: Mapping[str, Any] = self._processor(text=texts, images=pictures, add_special_tokens=False, **options)
        except Exception as error:  # processors raise almost anything, for instance for an image that is too narrow
            raise RowError(f"the processor refuses the conversation: {' '.join(str(error).split()):.200}") from None
        return found


def load_processor(instruct: Path) -> Processor | None:
    """The processor of an Instruct folder; None if the model takes no images.

    Raises CheckpointError if the processor cannot be loaded or has no token for images.
    """
    if not any((instruct / name).is_file() for name in _CONFIGS[:2]):
        return None
    processor = load(_loader(instruct), instruct)
    if getattr(processor, "image_processor", None) is None:
        return None
    if not getattr(processor, "image_token", None):
        raise CheckpointError(f"{instruct}: {type(processor).__name__} has no token for images; use another model")
    return Processor(processor)


def _loader(instruct: Path) -> Any:
    """The class of the processor, without its part for videos, which would need torchvision."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    configs = [read_json_object(instruct / name) for name in _CONFIGS if (instruct / name).is_file()]
    name = next((one["processor_class"] for one in configs if one.get("processor_class")), None)
    if name is None:
        kind = read_json_object(instruct / "config.json").get("model_type")
        name = PROCESSOR_MAPPING_NAMES.get(kind) or "AutoProcessor"
    found = getattr(transformers, str(name), transformers.AutoProcessor)
    attributes = found.get_attributes() if hasattr(found, "get_attributes") else []
    if "video_processor" not in attributes:
        return found
    kept = [attribute for attribute in attributes if attribute != "video_processor"]
    return type(found.__name__, (found,), {"get_attributes": classmethod(lambda _: kept)})


def _opened(path: Path) -> Any:
    """An image as transformers reads it: rotated by its EXIF orientation, in RGB."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise DataError(f"{path}: not readable: {error.strerror or error}; run `shadowft prepare` again") from None
