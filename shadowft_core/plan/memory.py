"""The peak memory of one device in training, by part, from what each part is made of.

The sizes of activations are what autograd keeps for the backward pass. On a CPU everything is float32; on CUDA products
run in bfloat16 autocast, so what they keep has two bytes. Only the CPU part has been compared with measurements
(benchmarks/results/plan.md). PROCESS and the holes of the heap were measured, all else is derived.
"""

from dataclasses import dataclass

from shadowft_core.params import Train
from shadowft_core.plan.shape import Shape

F32, HALF = 4, 2
# TRL's fused head: positions and columns of a tile of logits (trl/kernels/chunked_logprob.py).
TILE_TOKENS, TILE_COLUMNS = 4096, 32768
TILES = {"cpu": 8.25, "cuda": 1.0}  # tiles of float32 at once in its backward pass; on CUDA a kernel works in place
# Resident memory of the process without the model: interpreter, torch, transformers, TRL, datasets, and MLflow, which
# follows a training. Measured on Linux, x86-64. On CUDA: the context and the workspaces of cuBLAS; from public reports,
# not measured here.
PROCESS = {"cpu": 720e6, "cuda": 900e6}
# Holes in the heap of glibc, as a share of what all layers would keep: an aligned block does not fit into the hole of a
# freed one of the same size, so the results that a layer frees at once leave holes between those that stay, with
# checkpointing too. Calibrated on two runs of SmolLM2-135M: lora with 4 x 256 tokens, full with 2 x 256. With
# MALLOC_MMAP_THRESHOLD_=65536 the holes vanish, at a quarter more CPU time. Blocks above 32 MiB leave none.
HOLES_LORA, HOLES_FULL, LARGEST_IN_HEAP = 0.75, 0.3, 32 * 2**20
NF4 = 0.5 + 4 / 64  # bytes per weight in blocks of 64 with a float32 scale (bitsandbytes; double quantisation is less)


@dataclass(frozen=True)
class Batch:
    """What one micro-batch holds: sequences of `length` tokens, padded to it. `masked`: they differ in length."""

    sequences: int
    length: int
    masked: bool

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


@dataclass(frozen=True)
class Setting:
    """Where the training runs, and what it runs."""

    shape: Shape
    train: Train
    kind: str
    """cpu or cuda"""
    devices: int
    untrained: bool
    """the Base never trained tokens of the data, so embedding and head are held in float32"""


def memory(setting: Setting, batch: Batch) -> dict[str, float]:
    """Bytes by part at the peak of one device. Their sum is the prediction.

    The peak is in the loss (all activations and tiles of logits), in the backward pass of the last layer (all
    activations and its work space), or at the end of the backward pass (all gradients).
    """
    standing = _standing(setting)
    gradients = standing.pop("gradients")
    standing["heap"] = _holes(setting, batch)
    # The optimizer frees the gradients of a step, so the first micro-batch meets none.
    before = gradients if setting.train.accumulation > 1 else 0.0
    full = setting.train.method in ("full", "osf")
    # The gradient of the head, or of the embedding, before it is added up.
    own = setting.shape.embedding * F32 if full else 0.0
    kept, layer = activations(setting, batch)
    recomputed = layer if setting.train.gradient_checkpointing else 0.0
    moments: tuple[dict[str, float], ...] = (
        {"gradients": before, "activations": kept, "loss": head(setting, batch) + own},
        {"gradients": max(before, own), "activations": kept + recomputed + workspace(setting, batch), "loss": 0.0},
        {"gradients": gradients + own, "activations": 0.0, "loss": 0.0},
    )
    return standing | max(moments, key=lambda parts: sum(parts.values()))


def _standing(setting: Setting) -> dict[str, float]:
    """Bytes of what stays through a step, and of all gradients."""
    train, shape = setting.train, setting.shape
    shards = setting.devices if train.launch.strategy == "fsdp" else 1
    trained = trained_weights(setting)
    buckets = 2 if setting.devices > 1 and shards == 1 else 1  # DDP copies the gradients that it sends
    own = train.method in ("full", "osf")  # what is trained are the model's own weights
    parts = {
        "process": PROCESS[setting.kind],
        "weights": ((trained * F32 if own else 0.0) + _frozen(setting)) / shards,
        "adapter": 0.0 if own else trained * F32 / shards,
        "gradients": trained * F32 * buckets / shards,
        "optimizer": trained * (2 if train.optimizer == "adamw_8bit" else 8) / shards,
    }
    if shards > 1:  # the layer at work is gathered whole, and the next one with it
        parts["gathered"] = 2 * (shape.linear + shape.in_experts) / shape.layers * _width(setting)
    return parts


def trained_weights(setting: Setting) -> int:
    """Weights that the optimizer changes."""
    train, shape = setting.train, setting.shape
    if train.method == "full":
        return shape.weights - shape.others  # a vision tower stays as it is
    if train.method == "osf":
        return round(_osf(shape) * (1 - train.osf.preserved))
    count = shape.adapter(train.lora.rank)
    if train.lora.dora:
        count += shape.layers * sum(out for _, out in shape.attention + shape.expert)
    if train.lora.modules_to_save:
        count += shape.embedding * len(train.lora.modules_to_save)
    return count


def _width(setting: Setting) -> float:
    """Bytes per weight of a frozen linear layer."""
    if setting.train.method == "qlora":
        return NF4
    return HALF if setting.shape.stored < 2.5 and setting.train.method == "lora" else F32


def _osf(shape: Shape) -> int:
    """Weights of the factors U, S and V that OSF has in place of the linear layers."""
    each = [min(a, b) * (a + b + 1) for a, b in shape.attention + ([] if shape.experts else shape.expert)]
    return shape.layers * sum(each)


def _frozen(setting: Setting) -> float:
    """Bytes of the weights that are not trained: 16 bits where nothing is lost (train/frozen.py), float32 elsewhere."""
    shape, method = setting.shape, setting.train.method
    if method == "full":
        return shape.others * F32
    if method == "osf":
        return (shape.weights - shape.linear + _osf(shape) * setting.train.osf.preserved) * F32
    narrow = shape.stored < 2.5
    vocabulary = F32 if setting.untrained or shape.wide_embedding or not narrow else HALF
    heads = shape.embedding * (1 if shape.tied else 2)
    norms = shape.weights - shape.linear - shape.in_experts - heads - shape.others
    bytes_ = shape.linear * _width(setting) + heads * vocabulary + max(norms, 0) * F32
    return bytes_ + shape.in_experts * F32 + shape.others * (HALF if narrow else F32)


def per_token(setting: Setting, length: int, masked: bool) -> float:
    """Bytes that one layer keeps for the backward pass, per token.

    With products of width w: inputs of the linear layers, queries, keys, values and the output of attention, four times
    the MLP; in float32 the two residual sums that the norms read. Full tuning also keeps the normalised inputs of the
    norms' weights.
    """
    shape, train = setting.shape, setting.train
    cuda, adapted = setting.kind == "cuda", train.method not in ("full", "osf")
    w = HALF if cuda else F32
    h, q, k = shape.hidden, shape.queries, shape.keys
    repeated = k
    if train.attention == "eager" or (masked and train.attention == "sdpa"):
        repeated = q  # keys and values are repeated for each head
    residual = 2 * h * F32 * (1 if shape.norms == 2 else 2)
    inputs = 2 * h * w
    if cuda and adapted:  # autocast makes a copy of the input for each adapter: three in attention, two in the MLP
        inputs = (3 + 2) * h * w
    kept = residual + inputs + (2 * q + 2 * repeated) * w
    if shape.qk_norm:
        kept += (q + k) * F32
    if not adapted:
        kept += 2 * h * F32 * (shape.norms // 2) + ((q + k) * F32 if shape.qk_norm else 0)
    kept += (4 if shape.gated else 2) * shape.mlp * shape.experts_per_token * w
    if adapted:
        kept += len(shape.attention + ([] if shape.experts else shape.expert)) * train.lora.rank * w
    if train.attention == "eager":
        kept += shape.heads * length * (F32 + (HALF if cuda else 0))
    elif masked and train.attention == "sdpa":
        kept += length * w  # the mask, which every layer converts
    return kept


def activations(setting: Setting, batch: Batch) -> tuple[float, float]:
    """Bytes kept by all layers at the end of the forward pass, and by one layer that keeps everything."""
    shape, tokens = setting.shape, _tokens(setting, batch)
    layer = per_token(setting, batch.length, batch.masked) * tokens
    hidden = shape.hidden * F32 * tokens
    kept = shape.layers * (hidden if setting.train.gradient_checkpointing else layer)
    return kept + 2 * hidden, layer


def _holes(setting: Setting, batch: Batch) -> float:
    tokens = _tokens(setting, batch)
    if setting.kind != "cpu" or setting.shape.mlp * F32 * tokens > LARGEST_IN_HEAP:
        return 0.0
    share = HOLES_FULL if setting.train.method in ("full", "osf") else HOLES_LORA
    return share * setting.shape.layers * per_token(setting, batch.length, batch.masked) * tokens


def workspace(setting: Setting, batch: Batch) -> float:
    """Bytes that the backward pass of one layer needs besides: gradients of the MLP's products, a weight in float32."""
    shape, cpu = setting.shape, setting.kind == "cpu"
    cast = shape.hidden * shape.mlp * F32 if cpu and _width(setting) < F32 else 0
    each = shape.mlp * shape.experts_per_token * (F32 if cpu else HALF)
    return 3 * each * _tokens(setting, batch) + cast


def head(setting: Setting, batch: Batch) -> float:
    """Bytes of the loss: tiles of logits, the head's rows in float32, the gradient of its input."""
    shape, cpu, tokens = setting.shape, setting.kind == "cpu", _tokens(setting, batch)
    columns = min(TILE_COLUMNS, shape.vocabulary)
    tiles = TILES[setting.kind] * min(tokens, TILE_TOKENS) * columns * (F32 if cpu else HALF)
    rows = columns * shape.hidden * F32 if cpu and _width(setting) < F32 else 0
    return tiles + rows + tokens * shape.hidden * F32


def _tokens(setting: Setting, batch: Batch) -> int:
    """Tokens of a micro-batch; of preferences, both replies are in it."""
    return batch.tokens * (2 if setting.train.objective == "dpo" else 1)
