"""Finds control tokens in the data that the model never trained, and treats them as `render.template_tokens` sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import TrainError
from shadowft_core.rendering import IGNORED, Renderer
from shadowft_core.train.encode import Encoded
from shadowft_core.weights import Checkpoint, UntrainedToken, untrained_tokens, vocabulary_tensors

if TYPE_CHECKING:
    import torch

PADDING = 64  # rows after the vocabulary that are read, as a sample of unused rows


def untrained_in_rows(
    model: Checkpoint, instruct: Checkpoint, renderer: Renderer, rows: Encoded
) -> list[UntrainedToken]:
    """The control tokens in `rows` that `model` never trained; none if the model is the Instruct itself."""
    import numpy as np

    added = {number: token.content for number, token in renderer.tokenizer.added_tokens_decoder.items()}
    seen = set(np.unique(np.concatenate(rows.input_ids + rows.rejected)).tolist())
    learned = set(np.unique(np.concatenate(rows.labels + rows.rejected)).tolist()) - {IGNORED}
    used = {number: text for number, text in added.items() if number in seen}
    after = max(renderer.tokenizer.get_vocab().values()) + 1
    unused = (added.keys() - used.keys()) | set(range(after, after + PADDING))
    return untrained_tokens(model, instruct, used, learned, unused)


def described(untrained: Sequence[UntrainedToken], model: Checkpoint, setting: str) -> str:
    """One line with the tokens and their treatment. Raises TrainError with the tokens if `setting` is `error`."""
    found = f"{model.path}: never trained {len(untrained)} control tokens of the data: {', '.join(map(str, untrained))}"
    if setting == "error":
        raise TrainError(f"{found}; set render.template_tokens to from_instruct or train")
    done = "trains their rows" if setting == "train" else "uses the Instruct's rows for them during training"
    return f"{found}; {done} (render.template_tokens: {setting})"


@dataclass(frozen=True)
class BorrowedRows:
    """Rows of `module.weight` that have the Instruct's values during training. `own` are the model's values."""

    module: "torch.nn.Module"  # FSDP replaces its weight
    rows: list[int]
    own: "torch.Tensor"
    instruct: "torch.Tensor"

    def give_back(self) -> None:
        """Set the rows to the model's own values plus the change by training."""
        import torch

        with torch.no_grad():
            weight: torch.Tensor = self.module.weight
            trained = weight[self.rows]
            weight[self.rows] = self.own.to(trained) + (trained - self.instruct.to(trained))


def borrow_rows(network: Any, untrained: Sequence[UntrainedToken], instruct: Checkpoint) -> list[BorrowedRows]:
    """Set the untrained rows of the model's embedding and head to the Instruct's values."""
    import numpy as np
    import torch

    names = vocabulary_tensors(instruct)
    borrowed = []
    for part, module in (("embedding", network.get_input_embeddings()), ("head", network.get_output_embeddings())):
        if rows := [token.id for token in untrained if getattr(token, part)]:
            name = names.get(part, names["embedding"])
            width = instruct.info(name).shape[1]
            read = [instruct.part(name, row * width, width).astype(np.float32) for row in rows]
            weight, values = module.weight, torch.from_numpy(np.stack(read))
            with torch.no_grad():
                borrowed.append(BorrowedRows(module, rows, weight[rows].clone(), values))
                weight[rows] = values.to(weight)
    return borrowed


def trained_rows(network: Any, untrained: Sequence[UntrainedToken]) -> dict[str, list[int]]:
    """The untrained rows of embedding and head, as PEFT's `trainable_token_indices`: ids by module name."""
    found = {}
    for part, module in (("embedding", network.get_input_embeddings()), ("head", network.get_output_embeddings())):
        if rows := [token.id for token in untrained if getattr(token, part)]:
            found[next(name for name, held in network.named_modules() if held is module)] = rows
    return found
