"""Tasks: finds task files by name and builds them for lm-evaluation-harness, without a network."""

from shadowft_core.suites.images import MARK
from shadowft_core.suites.items import ItemFiles, item_files
from shadowft_core.suites.names import Group, Leaf, some
from shadowft_core.suites.taskfiles import TaskFiles

__all__ = ["MARK", "Group", "ItemFiles", "Leaf", "TaskFiles", "item_files", "some"]
