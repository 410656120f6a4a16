"""Models on a Hugging Face hub: side files from its cache, headers and weights by HTTP range, or all files."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from shadowft_core.errors import CheckpointError, InputError
from shadowft_core.pair.sidefiles import SIDE_FILES
from shadowft_core.remote.hub import hub_errors, online, pinned, snapshot
from shadowft_core.weights import Checkpoint, RemoteFiles, open_remote


@contextmanager
def opened(reference: str) -> Iterator[Checkpoint]:
    """A checkpoint with its side files in the hub's cache and its weights read in ranges.

    Raises InputError when the hub fails, here and in `part`; CheckpointError for a malformed model.
    """
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

    repo, revision = pinned(reference)

    @lru_cache
    def location(name: str) -> str:
        """The URL of a file's bytes, requested once: a hub limits such requests."""
        return str(get_hf_file_metadata(hf_hub_url(repo, name, revision=revision)).location)

    def read(name: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        with hub_errors(reference):
            url = location(name)
            # The hub's token must not be sent to the storage that a signed URL leads to.
            headers = build_hf_headers() if url.startswith(constants.ENDPOINT + "/") else {}
            headers["Range"] = f"bytes={start}-{start + length - 1}"
            headers["Accept-Encoding"] = "identity"
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            with http_stream_backoff("GET", url, headers=headers, timeout=timeout) as answer:
                hf_raise_for_status(answer)
                if answer.status_code != 206:  # the whole file would follow
                    raise InputError(
                        f"{reference}: {name} is not served in ranges; download the model and pass its folder"
                    )
                data = bytearray()
                for block in answer.iter_raw():
                    data += block
                    if len(data) > length:
                        raise InputError(f"{reference}: {name} is served with more than the {length} bytes asked for")
                return bytes(data)

    with online():
        folder = snapshot(reference, list(SIDE_FILES))
        with hub_errors(reference):
            tree = HfApi().list_repo_tree(repo, revision=revision)
            sizes = {f.path: f.size for f in tree if isinstance(f, RepoFile) and f.path.endswith(".safetensors")}
        try:
            model = open_remote(folder, RemoteFiles(sizes, read))
        except CheckpointError as error:
            raise type(error)(f"{reference}: {error}") from None
        yield model


def download(reference: str) -> Path:
    """Download the side files and only the weight files that the model is loaded from; return the folder."""
    with opened(reference) as model:
        return snapshot(reference, [*SIDE_FILES, *model.shards])
