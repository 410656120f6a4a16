"""Weights on disk: the only room that reads or writes safetensors files. Also the digests and the atomic writes."""

from shadowft_core.checkpoint.files import (
    bytes_digest,
    canonical_json,
    file_digest,
    new_folder,
    write_atomically,
    write_json_atomically,
)

__all__ = [
    "bytes_digest",
    "canonical_json",
    "file_digest",
    "new_folder",
    "write_atomically",
    "write_json_atomically",
]
