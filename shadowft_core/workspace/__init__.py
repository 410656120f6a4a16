"""Workspaces: folders of their own, outside of a checkout, in which a run lives.

making.py makes one. In a workspace every stage depends on a number in stages.yaml instead
of on code (stages.py); `upgrade` brings the numbers, and the files that nobody changed, to those of the installed
package. The files come from template/ (template.py), which has copies of this repository's own.
"""

from shadowft_core.workspace.stages import STAGES, Upgrade, planned, require_same_stage, require_usable_path, upgrade

__all__ = ["STAGES", "Upgrade", "planned", "require_same_stage", "require_usable_path", "upgrade"]
