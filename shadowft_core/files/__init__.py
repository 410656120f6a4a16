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
from shadowft_core.files.foreign import reading
from shadowft_core.files.jsonfile import parse_json, read_json_object, read_regular, write_json_atomically
from shadowft_core.files.ordered_map import WORKERS, in_order, threaded
from shadowft_core.files.record import Fields, Record, parse_record, read_record
from shadowft_core.files.regular import lines_of, open_regular, real_path
from shadowft_core.files.within import within

__all__ = [
    "WORKERS",
    "Fields",
    "Record",
    "bytes_digest",
    "cache_folder",
    "canonical_json",
    "claim_folder",
    "file_digest",
    "in_order",
    "lines_of",
    "make_folder",
    "make_private_file",
    "new_folder",
    "open_regular",
    "parse_json",
    "parse_record",
    "read_json_object",
    "read_record",
    "read_regular",
    "reading",
    "real_path",
    "sync",
    "threaded",
    "within",
    "write_atomically",
    "write_json_atomically",
]
