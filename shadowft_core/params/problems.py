"""The errors of pydantic in the words of params.yaml."""

import re

from pydantic import ValidationError

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


def problems(error: ValidationError, above: str = "") -> str:
    """Name every bad field as in the file, with the expected type and the value; missing fields come last.

    `above` is the dotted path of the part that was checked, ending with a dot.
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
            rest.append(f"{field}: no such field; correct or remove it")
        else:
            found = "" if whole and e["type"] == "value_error" else f" (found {e['input']!r:.80})"
            rest.append((f"{field}: " if field else "" if whole else "the file: ") + text + found)
    return "; ".join(
        rest + [f"missing: {', '.join(missing)}; `shadowft preset show NAME` prints a complete file"] * bool(missing)
    )
