"""Vision-language models on the engine `hf`: the harness's own code for images, in our batches.

Prompts without images take the path of every other model. Prompts are rendered as in training, before a model is
loaded; only the processor's tensors are made here.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval.models.hf_vlms import HFMultimodalLM

from shadowft_core.errors import EvaluationError
from shadowft_core.evaluate.engines.batches import TEXT, BatchedLM, text_batches
from shadowft_core.evaluate.engines.door import Reply
from shadowft_core.evaluate.engines.models import shows_images
from shadowft_core.rendering import Processor, load_processor


class PicturedLM(BatchedLM, HFMultimodalLM):  # type: ignore[misc]  # lm_eval is not typed
    """BatchedLM that also answers requests with images: (prompt, settings, {"visual": Pictures})."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, processor: Processor) -> None:
        self.images = processor
        super().__init__(model, tokenizer, batch_size)

    def _create_tokenizer(self, pretrained: Any, tokenizer: Any, **_: Any) -> None:
        self.tokenizer = tokenizer

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Reply]:
        asked = [request.args for request in requests]
        texts = [(prompt, settings) for prompt, settings, *_ in asked]
        return self._in_batches(TEXT, asked, text_batches(texts, self.tok_encode, self.batch_size))

    def answer(self, kind: str, batch: list[Any]) -> list[Any]:
        opened = [
            (*one[:2], {"visual": [self.images.opened(picture.path) for picture in one[2]["visual"]]})
            if kind == TEXT and len(one) > 2
            else one
            for one in batch
        ]
        return super().answer(kind, opened)

    def tok_batch_multimodal_encode(
        self, strings: list[str], images: list[list[Any]], left_truncate_len: int, **_: Any
    ) -> dict[str, Any]:
        """The inputs of a batch. The harness would cut a prompt that is too long, and its images with it."""
        found = {
            name: one.to(self.device, self.model.dtype if one.is_floating_point() else None)
            for name, one in self.images.tensors(strings, images, side="left").items()
        }
        longest = found["input_ids"].shape[1]
        if longest > left_truncate_len:
            raise EvaluationError(
                f"a prompt has {longest} tokens with its images, and the context leaves {left_truncate_len} beside the "
                f"answer ({strings[0][:60]!r}); shorten the prompts or max_gen_toks, or use smaller images"
            )
        return found

    def _model_multimodal_generate(self, inputs: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        output = super()._model_multimodal_generate(inputs, max_length, stop, **settings)
        self.note_ends(output[:, inputs["input_ids"].shape[1] :].tolist(), stop)
        return output


def lm_of(folder: Path, model: Any, tokenizer: Any, batch_size: int) -> BatchedLM:
    """The harness's model around a loaded one, whose folder says whether it takes images."""
    processor = _processor(folder) if shows_images(folder, model.config) else None
    if processor is None:
        return BatchedLM(model, tokenizer, batch_size)
    return PicturedLM(model, tokenizer, batch_size, processor)


@cache
def _processor(folder: Path) -> Processor | None:
    return load_processor(folder)
