"""What can be known before a training: the distance of the pair, and how Base and Instruct start on the data."""

from pathlib import Path
from typing import Any

from shadowft_core.pair import check_pair
from shadowft_core.params import Render, Train
from shadowft_core.rendering import load_renderer
from shadowft_core.train.encode import encode_file

ROWS = 256


def known_before(pair: Path, data: Path, params: Train) -> dict[str, float]:
    """sigma of the pair; `base` and `instruct`: their losses per learned token, before any step, on about ROWS evenly
    spread training rows; `cosine` of their gradients, over the weights of all linear layers but the head."""
    losses, gradients = {}, {}
    for side in ("base", "instruct"):
        losses[side], gradients[side] = _first_gradient(pair / side, pair / "instruct", data, params)
    a, b = gradients["base"], gradients["instruct"]
    cosine = float(a @ b / (a.norm() * b.norm()))
    return {"sigma": check_pair(pair / "base", pair / "instruct")["sigma"]["overall"], **losses, "cosine": cosine}


def _first_gradient(model: Path, instruct: Path, data: Path, params: Train) -> tuple[float, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from shadowft_core.loading import load

    rows = encode_file(data / "train.parquet", load_renderer(instruct, Render()), params.max_length)
    network = load(AutoModelForCausalLM, model, dtype=torch.float32)
    step = max(1, len(rows.input_ids) // ROWS)
    ids = [torch.as_tensor(one.astype("int64")) for one in rows.input_ids[::step]]
    labels = [torch.as_tensor(one.astype("int64")) for one in rows.labels[::step]]

    def padded(sequences: list[Any], value: int) -> Any:
        return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)

    mask = padded([torch.ones_like(one) for one in ids], 0)
    loss = network(input_ids=padded(ids, 0), attention_mask=mask, labels=padded(labels, -100)).loss
    loss.backward()
    layers = [module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    head = network.get_output_embeddings()
    flat = [layer.weight.grad.flatten() for layer in layers if layer is not head]
    return loss.item(), torch.cat(flat).double()
