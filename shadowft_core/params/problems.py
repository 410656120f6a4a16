"""The errors of pydantic in the words of params.yaml."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TypeGuard

from pydantic import BaseModel, ValidationError

# Steps in pydantic's path of a field that name the type it tried; the name in the file does not have them.
_BRANCH = re.compile(r"literal\[|\[key\]$|constrained-|tuple\[|(str|int|float)$")
# pydantic's terms, from Python and JSON, and those of YAML.
_YAML_TERMS = (
    ("a valid array", "a list"),
    ("an object", "`name: value` pairs"),
    ("Tuple", "List"),
    (" after validation", ""),
    ("Value error, ", ""),
)


def problems(error: ValidationError, model: type[BaseModel], above: str = "") -> str:
    """Name every bad field as in the file, with the expected type and the value; missing fields come last.

    `model` is what was checked, `above` the dotted path of that part, ending with a dot.
    """
    missing, rest = [], []
    for e in error.errors():
        field = above + ".".join(str(part) for part in e["loc"] if not _BRANCH.match(str(part)))
        field = field.removesuffix(".")
        whole = isinstance(e["input"], dict)  # a check across fields, which names them and their values itself
        text = e["msg"]
        for pydantic_term, yaml_term in _YAML_TERMS:
            text = text.replace(pydantic_term, yaml_term)
        if e["type"] == "missing":
            missing.append(field)
        elif e["type"] == "extra_forbidden":  # the value may be a misplaced key or password
            rest.append(f"{field}: no such field; {_meant(model, e['loc'])}correct or remove it")
        else:
            found = "" if whole and e["type"] == "value_error" else f" (found {e['input']!r:.80})"
            rest.append((f"{field}: " if field else "" if whole else "the file: ") + text + found)
    return "; ".join(
        rest + [f"missing: {', '.join(missing)}; `shadowft preset show NAME` prints a complete file"] * bool(missing)
    )


def _meant(model: type[BaseModel], place: Sequence[int | str]) -> str:
    """The known field that an unknown one resembles, if its section can be told from the path alone."""
    section: object = model
    for step in place[:-1]:
        field = section.model_fields.get(str(step)) if _is_section(section) else None
        section = field.annotation if field else None
    near = get_close_matches(str(place[-1]), section.model_fields, 1, 0.7) if _is_section(section) else []
    return "".join(f"did you mean `{name}`? " for name in near)


def _is_section(found: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(found, type) and issubclass(found, BaseModel)
