"""Tokens of the chat template that the Base never trained: found, and given rows as `render.template_tokens` says."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shadowft_core.errors import TrainError
from shadowft_core.rendering import IGNORED, Renderer
from shadowft_core.train.encode import Encoded
from shadowft_core.weights import Checkpoint, UntrainedToken, untrained_tokens, vocabulary_tensors

if TYPE_CHECKING:
    import torch

PADDING = 64  # rows behind the vocabulary that stand for all of them


def untrained_in_rows(
    model: Checkpoint, instruct: Checkpoint, renderer: Renderer, rows: Encoded
) -> list[UntrainedToken]:
    """The control tokens in the rows that `model` never trained; none if it is the Instruct itself."""
    import numpy as np

    added = {number: token.content for number, token in renderer.tokenizer.added_tokens_decoder.items()}
    seen = set(np.unique(np.concatenate(rows.input_ids)).tolist())
    learned = set(np.unique(np.concatenate(rows.labels)).tolist()) - {IGNORED}
    used = {number: text for number, text in added.items() if number in seen}
    after = max(renderer.tokenizer.get_vocab().values()) + 1
    unused = (added.keys() - used.keys()) | set(range(after, after + PADDING))
    return untrained_tokens(model, instruct, used, learned, unused)


def described(untrained: Sequence[UntrainedToken], model: Checkpoint, setting: str) -> str:
    """One line about the tokens and what is done. Raises TrainError with it if `render.template_tokens` is `error`."""
    found = f"{model.path}: never trained {len(untrained)} tokens of the rows: {', '.join(map(str, untrained))}"
    if setting == "error":
        raise TrainError(f"{found}; set render.template_tokens to from_instruct or train")
    done = "their rows are trained" if setting == "train" else "the Instruct's rows stand in for theirs while training"
    return f"{found}; {done} (render.template_tokens: {setting})"


@dataclass(frozen=True)
class BorrowedRows:
    """Rows of a loaded model's weight that hold the Instruct's values while it is trained; float32, (rows, width)."""

    weight: "torch.Tensor"
    rows: list[int]
    own: "torch.Tensor"
    instruct: "torch.Tensor"

    def give_back(self) -> None:
        """Give the model its own rows again, changed as the training changed the Instruct's."""
        import torch

        with torch.no_grad():
            trained = self.weight[self.rows]
            self.weight[self.rows] = self.own.to(trained) + (trained - self.instruct.to(trained))


def borrow_rows(network: Any, untrained: Sequence[UntrainedToken], instruct: Checkpoint) -> list[BorrowedRows]:
    """Set the untrained rows of the model's embedding and head to the Instruct's."""
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
                borrowed.append(BorrowedRows(weight, rows, weight[rows].clone(), values))
                weight[rows] = values.to(weight)
    return borrowed


def trained_rows(network: Any, untrained: Sequence[UntrainedToken]) -> dict[str, list[int]]:
    """PEFT's trainable_token_indices: ids by name of the module."""
    found = {}
    for part, module in (("embedding", network.get_input_embeddings()), ("head", network.get_output_embeddings())):
        if rows := [token.id for token in untrained if getattr(token, part)]:
            found[next(name for name, held in network.named_modules() if held is module)] = rows
    return found
