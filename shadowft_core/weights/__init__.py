"""Weights on disk and what tensor names mean. No other room reads or writes safetensors files."""

from shadowft_core.weights.checkpoint import CHUNK, INDEX, SINGLE, Checkpoint, model_digest
from shadowft_core.weights.families import (
    EXPERT_NAMES,
    LAYERS,
    LINEAR,
    Family,
    is_language,
    layer_of,
    module_of,
    note_unknown,
    require_equal,
)
from shadowft_core.weights.header import DTYPES, FLOATS, TensorInfo, build_header, parse_header, read_header
from shadowft_core.weights.match import Runs, account, fitted, match_rows, rows_by_token, runs_of
from shadowft_core.weights.opening import open_checkpoint, open_remote, open_safetensors
from shadowft_core.weights.remote import RemoteFiles
from shadowft_core.weights.sides import (
    Ignored,
    by_reason,
    percent,
    remedy,
    require_met,
    require_no_codes,
    require_one_sided,
)
from shadowft_core.weights.untrained import UntrainedToken, untrained_tokens, vocabulary_tensors
from shadowft_core.weights.vocabulary import NO_TOKEN, marks_of, read_vocabulary, token_marks
from shadowft_core.weights.writer import Bytes, append_safetensors, write_checkpoint, write_safetensors, write_shards

__all__ = [
    "CHUNK",
    "DTYPES",
    "EXPERT_NAMES",
    "FLOATS",
    "INDEX",
    "LAYERS",
    "LINEAR",
    "NO_TOKEN",
    "SINGLE",
    "Bytes",
    "Checkpoint",
    "Family",
    "Ignored",
    "RemoteFiles",
    "Runs",
    "TensorInfo",
    "UntrainedToken",
    "account",
    "append_safetensors",
    "build_header",
    "by_reason",
    "fitted",
    "is_language",
    "layer_of",
    "marks_of",
    "match_rows",
    "model_digest",
    "module_of",
    "note_unknown",
    "open_checkpoint",
    "open_remote",
    "open_safetensors",
    "parse_header",
    "percent",
    "read_header",
    "read_vocabulary",
    "remedy",
    "require_equal",
    "require_met",
    "require_no_codes",
    "require_one_sided",
    "rows_by_token",
    "runs_of",
    "token_marks",
    "untrained_tokens",
    "vocabulary_tensors",
    "write_checkpoint",
    "write_safetensors",
    "write_shards",
]
