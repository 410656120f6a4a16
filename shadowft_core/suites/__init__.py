"""Tasks: finds task files by name and builds them for lm-evaluation-harness, without a network."""

from shadowft_core.suites.taskfiles import TaskFiles

__all__ = ["TaskFiles"]
