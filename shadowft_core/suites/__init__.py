"""Tasks: finds task files by name and builds them for lm-evaluation-harness, without a network."""

from shadowft_core.suites.images import MARK
from shadowft_core.suites.items import ItemFiles, Rows, item_files, rows_of
from shadowft_core.suites.names import Group, Leaf, some
from shadowft_core.suites.taskfiles import TaskFiles

__all__ = ["MARK", "Group", "ItemFiles", "Leaf", "Rows", "TaskFiles", "item_files", "rows_of", "some"]
