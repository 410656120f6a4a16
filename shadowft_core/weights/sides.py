"""Tensors that only one of two models has: which can be ignored, and which waiver the others need."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from shadowft_core.errors import InputError, QuantisedError

_CODES = re.compile(
    r"\.(weight_scale(_inv)?|weight_packed|input_scale|q(weight|zeros)|scales|absmax)$|_(blocks|scales)$"
)
MANY, DEEP, SHOWN = 50_000, 32, 50  # tensors, steps of a name, and patterns for which a waiver is worked out
Ignored = dict[str, dict[str, list[str]]]
"""names of tensors by reason, then by side"""


def by_reason(
    only: Mapping[str, Collection[str]],
    patterns: Sequence[str],
    unloaded: Callable[[str], bool],
    title: str,
) -> tuple[dict[str, list[str]], Ignored]:
    """Tensors to refuse, by side, and tensors to ignore: waived by a pattern, or not loaded by the class `title`."""
    left: dict[str, list[str]] = {}
    ignored: Ignored = {}
    for side, names in only.items():
        for name in sorted(names):
            pattern = next((p for p in patterns if fnmatchcase(name, p)), None)
            if pattern is None and not unloaded(name):
                left.setdefault(side, []).append(name)
                continue
            reason = f"{title} does not load it" if pattern is None else f"waived by name: {pattern}"
            ignored.setdefault(reason, {}).setdefault(side, []).append(name)
    return left, ignored


def require_no_codes(names: Collection[str], path: Path) -> None:
    """Raise QuantisedError when one of these tensors, which the other model lacks, belongs to quantised weights."""
    if found := next(filter(_CODES.search, sorted(names)), None):
        raise QuantisedError(
            f"{path}: has {found}, so its weights are quantised codes, although config.json has no "
            "quantization_config; pass the dequantised checkpoint"
        )


def require_one_sided(patterns: Sequence[str], both: Collection[str], where: str) -> None:
    """Raise InputError for a pattern that matches a tensor of both models: trained tensors are never ignored."""
    for pattern in patterns:
        if met := next((name for name in sorted(both) if fnmatchcase(name, pattern)), None):
            raise InputError(
                f"--ignore {pattern!r} matches {met}, which both sides have ({where}); only a tensor that one side "
                "lacks can be ignored: narrow the pattern"
            )


def require_met(patterns: Sequence[str], ignored: Ignored, where: str) -> None:
    """Raise InputError for a pattern that matches no tensor that only one side has."""
    met = [name for sides in ignored.values() for names in sides.values() for name in names]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in met):
            raise InputError(
                f"--ignore {pattern!r} matches no tensor that only one side has ({where}); "
                "a pattern is a glob of whole names, such as 'mtp.*'; correct or remove it"
            )


def remedy(left: Mapping[str, Sequence[str]], both: Collection[str]) -> str:
    """The options that would waive all of `left`, as `; or ...`.

    Empty when a tensor seems to be renamed, when the two models have no tensor in common, or when there are too many
    names to search them all."""
    leaves = [{".".join(name.split(".")[-2:]) for name in names} for names in left.values()]
    if len(both) > MANY or any(name.count(".") > DEEP for names in left.values() for name in names):
        return ""
    if not both or (len(leaves) > 1 and set.intersection(*leaves)):
        return ""
    found: list[str] = []
    for name in (name for names in left.values() for name in names):
        if not any(fnmatchcase(name, pattern) for pattern in found):
            if len(found) == SHOWN:
                return ""
            found.append(_pattern(name, both))
    options = " ".join(f"--ignore '{pattern}'" for pattern in found)
    return f"; or waive the missing tensors by name: {options} (for a project: extract.ignore)"


def _pattern(name: str, both: Collection[str]) -> str:
    """The widest pattern with a prefix of the name that matches no tensor of both models."""
    steps = name.split(".")
    for length in range(1, len(steps) + 1):
        start = ".".join(steps[:length])
        whole = length == len(steps)
        if not whole and any(other.startswith(f"{start}.") for other in both):
            continue
        for shown in (re.sub(r"(?<=\.)\d+(?=\.|$)", "*", start), start):
            pattern = _escaped(shown) if whole else f"{_escaped(shown)}.*"
            if not any(fnmatchcase(other, pattern) for other in both):
                return pattern
    return _escaped(name)


def _escaped(text: str) -> str:
    return text.replace("[", "[[]")


def percent(share: float) -> str:
    """A share as text, `99.98 %`; only exactly 1 is 100 %, only exactly 0 is 0 %."""
    if 0 < share < 0.0001 or 0.9999 < share < 1:
        return "less than 0.01 %" if share < 0.5 else "more than 99.99 %"
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + " %"
