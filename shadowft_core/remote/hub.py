"""Downloads snapshots of a Hugging Face hub by pinned references, and turns its errors into one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shadowft_core.errors import InputError, ShadowError

REVISION = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")


def pinned(reference: str) -> tuple[str, str]:
    """Repository and revision of `hf:OWNER/NAME@REVISION`. Raises InputError for anything else."""
    match = _NAME.fullmatch(reference)
    if match is None:
        raise InputError(
            f"{reference}: not pinned; use hf:OWNER/NAME@REVISION with the 40 hex digits of a commit, which its "
            "page on the hub lists under Files and versions, History"
        )
    return match["repo"], match["revision"]


def snapshot(reference: str, patterns: list[str], kind: str = "model") -> Path:
    """Download the files that match the patterns, unless they are in the hub's cache, and return their folder.

    `reference` is pinned; `kind` is `model` or `dataset`. An interrupted download resumes. Raises InputError if the hub
    fails.
    """
    from huggingface_hub import snapshot_download

    repo, revision = pinned(reference)
    with hub_errors(reference, kind):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, repo_type=kind))


def current_commit(repo: str, kind: str = "model") -> str:
    """The 40 hex digits of the newest commit of a `model` or `dataset`. Raises InputError if the hub fails."""
    from huggingface_hub import HfApi

    with online(), hub_errors(f"hf:{repo}", kind):
        return str(HfApi().repo_info(repo, repo_type=kind).sha)


@contextmanager
def online() -> Iterator[None]:
    """Turn off the offline mode of the hub's library in the block."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def hub_errors(reference: str, kind: str = "model") -> Iterator[None]:
    """Turn any error of the hub in the block into an InputError with a one-line message."""
    try:
        yield
    except ShadowError:
        raise
    except Exception as error:  # the hub's library raises errors of four libraries
        reason = " ".join(str(error).split())
        raise InputError(
            f"{reference}: the hub failed ({reason:.200}); download the {kind} and pass its folder"
        ) from None
