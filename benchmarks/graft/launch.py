"""Run one command and write the resources it used: `launch.py REPORT COMMAND...`, started with `python -I -S`.

A separate, small process: Linux counts the memory a process had before its exec as part of its peak, so a
launcher with numpy in it would lend its own size to a command that needs less.
"""

import json
import os
import sys
import time


def main(report: str, command: list[str]) -> int:
    """Write wall and CPU seconds, peak resident memory and bytes read from disk; return the command's exit code."""
    start = time.perf_counter()
    child = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(child, 0)  # children that the command waited for are included
    taken = {
        "wall": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
        "read": usage.ru_inblock * 512,
    }
    with open(report, "w", encoding="utf-8") as file:
        json.dump(taken, file)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
