"""A program that has DVC reproduce one stage of the workspace in the current folder.

`python reproduce.py STAGE [force]` is like `dvc repro -q -s STAGE` (with force: `-f`), but the exit code is that of the
stage's command, or 128 + n when signal n killed it (`dvc` returns 255 for both). An error of DVC is one line on stderr.
A stage whose inputs changed while its command ran fails.
"""

import logging
import re
import sys
from typing import Any


def main(stage: str, force: bool) -> int:
    """Reproduce a stage; returns the exit code. With `force`, its command runs even if DVC finds nothing changed."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageCmdFailedError

    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _refuse_changed_inputs()
    try:
        with Repo(_wait_for_lock=True) as repository:
            repository.reproduce([stage], single_item=True, force=force)
    except DvcException as error:
        causes = [error]
        while isinstance(cause := causes[-1].__cause__, Exception):
            causes.append(cause)
        status = re.search(r"exited with (-?\d+)$", str(causes[-1]))  # DVC reports the code only in the message
        if isinstance(causes[-1], StageCmdFailedError) and status:
            code = int(status[1])
            return code if code >= 0 else 128 - code
        print("ERROR:", *" ".join(f"{cause};" for cause in causes).rstrip(";").split(), file=sys.stderr)
        return 255
    return 0


def _refuse_changed_inputs() -> None:
    """Make DVC raise when a file or parameter that a stage depends on changes while its command runs.

    DVC reads them before the command and again after it, and records only the second reading in dvc.lock and its run
    cache: an output of the former inputs would pass for one of the new inputs (treeverse/dvc issue 11058).
    """
    from dvc.exceptions import DvcException
    from dvc.stage import Stage

    read: Any = Stage.save_deps
    before: dict[tuple[str, str], Any] = {}

    def read_and_compare(stage: Any, *arguments: Any, **options: Any) -> None:
        read(stage, *arguments, **options)
        now = {(stage.addressing, str(one)): one.hash_info for one in stage.deps}
        changed = [key[1] for key, state in now.items() if before.setdefault(key, state) != state]
        if changed:
            raise DvcException(
                f"{', '.join(changed)}: changed while the stage ran; its output is not kept, run it again"
            )

    Stage.save_deps = read_and_compare


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "force" in sys.argv[2:]))
