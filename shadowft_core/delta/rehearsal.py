"""Checks before the first training step that `extract` can use what the training will save."""

from collections.abc import Mapping
from pathlib import Path

from shadowft_core.delta.adapter import ADAPTER_WEIGHTS
from shadowft_core.delta.complete import NotAdapted
from shadowft_core.delta.interpret import open_adapter
from shadowft_core.errors import ShadowError, ShapeMismatchError, TensorMissingError, say
from shadowft_core.weights import open_checkpoint


def require_extractable(model: Path, planned: Path | Mapping[str, tuple[int, ...]]) -> None:
    """Raise what `extract` would raise after the training, as far as config, names and shapes show it.

    `planned` is a folder with the adapter as it is before the first step, or, for a full training, the shapes of the
    tensors it will save, by their names in files. Tensors that only `model` has are no error, since `extract` can waive
    them; for an adapter, a note is printed.
    """
    before = open_checkpoint(model)
    if isinstance(planned, Path):
        try:
            open_adapter(before, planned)
        except NotAdapted as error:  # PEFT has just saved all it adapts; the rest is not in the loaded model
            say(f"note: `extract` will need a waiver: {error}")
        except ShadowError as error:
            reason = str(error).replace(f"{planned / ADAPTER_WEIGHTS}: ", "").replace(f"{planned}", "the adapter")
            raise type(error)(
                f"{model}: after train.method: lora, `extract` would refuse: {reason}; or use train.method: full"
            ) from None
        return
    own = {before.home(name): shape for name, shape in planned.items() if not before.family.ignores(name)}
    if odd := sorted(name for name in own if name not in before):
        raise TensorMissingError(
            f"{model}: a full training would save {odd[0]}, which the folder lacks ({len(odd)} in all), "
            "so no delta could be extracted; save the model with save_pretrained of this transformers version, or use "
            "train.method: lora"
        )
    for name, shape in own.items():
        if (held := before.info(name).shape) != shape:
            raise ShapeMismatchError(
                f"{model}: a full training would save {name} as {shape}, the folder has {held}; save the model with "
                "save_pretrained of this transformers version"
            )
