"""Watches the logits of a model in this process: NaN or infinity ends the arm, with the tensor that is to blame."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shadowft_core.errors import EvaluationError

SHOWN = 60  # last characters of the text in an error
_HANDLE = "_shadowft_finite"


class NotFinite(EvaluationError):
    """Logits were NaN or infinite. `ids` are the token ids of the first prompt, and what was generated, to show it."""

    ids: tuple[int, ...] = ()


def watch(model: Any, tokenizer: Any) -> Any:
    """Make every forward pass of a causal language model raise NotFinite for logits that are NaN or infinite.

    Of a generation, which pads on the left, the logits after the last token are checked; else all. Watching a model
    again changes nothing. Returns the model.
    """
    if not hasattr(model, _HANDLE):
        setattr(model, _HANDLE, model.register_forward_hook(_Check(tokenizer), with_kwargs=True))
    return model


class _Check:
    """The hook. Remembers the ids of the last pass over a whole prompt; later passes read one new token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: Any = None
        self._mask: Any = None
        self._searching = False

    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        import torch

        if self._searching:
            return
        ids: Any = kwargs.get("input_ids", args[0] if args else None)
        mask: Any = kwargs.get("attention_mask")
        if ids is not None and ids.shape[1] > 1:
            self._ids, self._mask = ids, mask
        logits = output.logits if mask is None else output.logits[:, -1:]
        if torch.isfinite(logits.sum(dtype=torch.float32)):  # one pass without a copy; NaN and infinity remain
            return
        rows = (~torch.isfinite(logits)).flatten(1).any(1).nonzero().flatten()
        if not len(rows):
            return  # only the sum is too large
        row = int(rows[0])
        prompt = (self._ids if self._ids is not None and len(self._ids) > row else ids)[row]
        if self._mask is not None and self._mask.shape == self._ids.shape:
            prompt = prompt[self._mask[row].bool()]
        self._searching = True
        try:
            found = cause(model, prompt[None])
        finally:
            self._searching = False
        text = self._tokenizer.decode(prompt, skip_special_tokens=False)
        error = NotFinite(f"logits after {text[-SHOWN:]!r} are NaN or infinite: {found}")
        error.ids = tuple(prompt.tolist())
        raise error


def cause(model: Any, ids: Any) -> str:
    """The first tensor of the model that is not finite; if all are, the first module whose output for `ids` is not."""
    import torch

    for kind, tensors in (("weight tensor", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = int((~torch.isfinite(tensor)).sum())
                return (
                    f"{kind} {name} has {bad} of {tensor.numel()} values that are NaN or infinite; the weights are "
                    "damaged, get or train them again"
                )
    with _first_bad_output(model) as names, torch.no_grad():
        model(input_ids=ids)
    where = f"the output of {names[0]} is the first that is not" if names else "it does not happen to this prompt alone"
    return f"all weights are finite, {where}; the weights overflow in {_dtype(model)}, use another delta or scale"


@contextmanager
def _first_bad_output(model: Any) -> Iterator[list[str]]:
    import torch

    found: list[str] = []

    def hook_of(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            floats = (one for one in tensors if isinstance(one, torch.Tensor) and one.is_floating_point())
            if not found and not all(bool(torch.isfinite(one).all()) for one in floats):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")
