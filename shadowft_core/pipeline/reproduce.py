"""A program that has DVC reproduce one stage of the workspace in the current folder: `python reproduce.py STAGE`.

Like `dvc repro -q -s STAGE`, but the exit code is that of the stage's command, or 128 + n when signal n killed it
(`dvc` returns 255 for both). An error of DVC is one line on stderr.
"""

import logging
import re
import sys


def main(stage: str) -> int:
    """Reproduce a stage; returns the exit code."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage.exceptions import StageCmdFailedError

    for name in ("dvc", "dvc_objects", "dvc_data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with Repo(_wait_for_lock=True) as repository:
            repository.reproduce([stage], single_item=True)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
