"""What a program may use before it is stopped."""

from typing import NamedTuple

MIB = 1 << 20
SLACK = 8  # seconds that the tests may take themselves


class Limits(NamedTuple):
    """Limits of one program; `of_tests` are those of its tests, which run in a process of their own."""

    wall: int = 8
    """seconds from the start of the program to the end of its tests; for waiting and for a loaded machine"""
    cpu: int = 6
    """seconds of CPU time"""
    memory: int = 512 * MIB
    """bytes of address space"""
    threads: int = 16
    open_files: int = 64
    file: int = 16 * MIB
    """bytes of one file"""
    folder: int = 32 * MIB
    """bytes of all files; they are in memory"""
    output: int = MIB
    """bytes written to stdout and stderr"""

    def of_tests(self) -> "Limits":
        """The same, with room for tests that are megabytes of literals."""
        return self._replace(wall=self.wall + SLACK, cpu=self.cpu + SLACK, memory=max(self.memory, 2048 * MIB))
