"""Tasks that show images: which models and engines can be asked, and where a prompt shows them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowft_core.errors import EvaluationError
from shadowft_core.params import Evaluate
from shadowft_core.rendering import Renderer
from shadowft_core.suites import MARK


def require_images(name: str, instruct: Path, renderer: Renderer, params: Evaluate) -> None:
    """Raise EvaluationError if the Instruct or the engine cannot be shown images."""
    if params.engine.kind != "hf" or params.engine.devices > 1:
        given = (
            "devices: " + str(params.engine.devices) if params.engine.kind == "hf" else f"kind: {params.engine.kind}"
        )
        raise EvaluationError(
            f"task {name}: shows images, which only evaluate.engine.kind: hf with one device answers, not {given}; "
            "change the engine, or take the task out"
        )
    if renderer.processor is None:
        raise EvaluationError(
            f"task {name}: shows images, and {instruct} has no processor for images; use a vision-language model, or "
            "take the task out"
        )


def placing(render: Callable[..., str]) -> Callable[..., str]:
    """A function that renders messages, for contents with marks where the images stand."""

    def placed(message: Mapping[str, Any]) -> dict[str, Any]:
        pieces = str(message["content"]).split(MARK)
        ends = [len("".join(pieces[: at + 1])) for at in range(len(pieces) - 1)]
        return {**message, "content": "".join(pieces), "images": [(end, None) for end in ends]}

    def rendered(messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        return render([placed(message) for message in messages], add_generation_prompt)

    return rendered
