"""Weights that are read over the network, by byte range."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFiles:
    """Remote safetensors files: sizes in bytes by file name, and `read(name, start, length)`, which returns bytes."""

    sizes: Mapping[str, int]
    read: Callable[[str, int, int], bytes]
