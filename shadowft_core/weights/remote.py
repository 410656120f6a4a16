"""Weights that are read over the network, in ranges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFiles:
    """Safetensors files behind a network: their sizes in bytes by file name, and `read(name, start, length)`."""

    sizes: Mapping[str, int]
    read: Callable[[str, int, int], bytes]
