"""The child process of algebra.py: reads pairs of expressions from stdin, writes true or false for each.

It ends with its parent, whose death closes stdin; a comparison that hangs ends by the limit on processor time.
"""

import json
import resource
import sys
from typing import Any

CPU_SECONDS = 30
MEMORY = 4 * 2**30  # bytes
CLOSE = 1e-5  # largest difference of two equal numbers, relative to the larger one
DIGITS = 30


def main() -> None:
    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    print("ready", flush=True)
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        try:
            wanted, stated = (
                [
                    one
                    for one in parse(f"${text}$", config, "no_fallback", parsing_timeout=None)
                    if not isinstance(one, str)
                ]
                for text in json.loads(line)
            )
            equal = bool(wanted and stated) and verify(
                wanted, stated, timeout_seconds=None, allow_set_relation_comp=True
            )
            equal = equal and any(_close(one, other) for one in wanted for other in stated)
        except Exception:  # whatever the library raises, it has not called them equal
            equal = False
        print("true" if equal else "false", flush=True)


def _close(one: Any, other: Any) -> bool:
    """Whether two numbers differ little for their size; true of all else. math_verify looks at their difference alone,
    so that it calls 2^-98 and 2^-99 equal (huggingface/Math-Verify#14)."""
    if one == other or not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return True
    first, second = one.evalf(DIGITS), other.evalf(DIGITS)
    return bool(abs(first - second) <= CLOSE * max(abs(first), abs(second)))


if __name__ == "__main__":
    main()
