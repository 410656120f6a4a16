"""Files and folders that are complete or absent, digests, the cache folder, and an ordered parallel map."""

from shadowft_core.files.atomic import (
    claim_folder,
    make_folder,
    make_private_file,
    new_folder,
    sync,
    write_atomically,
)
from shadowft_core.files.cache import cache_folder
from shadowft_core.files.digests import bytes_digest, canonical_json, file_digest
from shadowft_core.files.jsonfile import read_json_object, write_json_atomically
from shadowft_core.files.ordered_map import WORKERS, in_order, threaded

__all__ = [
    "WORKERS",
    "bytes_digest",
    "cache_folder",
    "canonical_json",
    "claim_folder",
    "file_digest",
    "in_order",
    "make_folder",
    "make_private_file",
    "new_folder",
    "read_json_object",
    "sync",
    "threaded",
    "write_atomically",
    "write_json_atomically",
]
