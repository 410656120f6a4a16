"""Weights on disk: the only room that reads or writes safetensors files. Also the digests, the atomic writes,
and what tensor names mean in the families known here."""

from shadowft_core.checkpoint import kernel
from shadowft_core.checkpoint.families import EXPERTS, LINEAR, SINGLE_EXPERTS, Family
from shadowft_core.checkpoint.files import (
    bytes_digest,
    cache_folder,
    canonical_json,
    file_digest,
    new_folder,
    write_atomically,
    write_json_atomically,
)
from shadowft_core.checkpoint.header import DTYPES, FLOATS, TensorInfo, build_header, parse_header, read_header
from shadowft_core.checkpoint.model import (
    CHUNK,
    INDEX,
    SINGLE,
    WORKERS,
    Away,
    Checkpoint,
    model_digest,
    open_away,
    open_checkpoint,
    open_safetensors,
    read_json_object,
)
from shadowft_core.checkpoint.parallel import in_order, threaded
from shadowft_core.checkpoint.rows import account, fitted, match_rows, runs_of
from shadowft_core.checkpoint.scratch import scratch
from shadowft_core.checkpoint.sides import (
    Ignored,
    by_reason,
    percent,
    remedy,
    require_met,
    require_no_codes,
    require_one_sided,
)
from shadowft_core.checkpoint.ties import note_unknown, require_equal
from shadowft_core.checkpoint.vocabulary import NO_TOKEN, read_vocabulary, token_marks
from shadowft_core.checkpoint.writing import (
    Bytes,
    append_safetensors,
    write_checkpoint,
    write_safetensors,
    write_shards,
)

__all__ = [
    "CHUNK",
    "DTYPES",
    "EXPERTS",
    "FLOATS",
    "INDEX",
    "LINEAR",
    "NO_TOKEN",
    "SINGLE",
    "SINGLE_EXPERTS",
    "WORKERS",
    "Away",
    "Bytes",
    "Checkpoint",
    "Family",
    "Ignored",
    "TensorInfo",
    "account",
    "append_safetensors",
    "build_header",
    "by_reason",
    "bytes_digest",
    "cache_folder",
    "canonical_json",
    "file_digest",
    "fitted",
    "in_order",
    "kernel",
    "match_rows",
    "model_digest",
    "new_folder",
    "note_unknown",
    "open_away",
    "open_checkpoint",
    "open_safetensors",
    "parse_header",
    "percent",
    "read_header",
    "read_json_object",
    "read_vocabulary",
    "remedy",
    "require_equal",
    "require_met",
    "require_no_codes",
    "require_one_sided",
    "runs_of",
    "scratch",
    "threaded",
    "token_marks",
    "write_atomically",
    "write_checkpoint",
    "write_json_atomically",
    "write_safetensors",
    "write_shards",
]
