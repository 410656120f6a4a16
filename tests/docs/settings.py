"""The page of params.yaml: every section and field with type, default, limits and meaning, and an example."""

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as limits
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shadowft_core.limits import VALUE_COUNT
from shadowft_core.params import Params
from tests.docs.text import code, codes, prose, table

EXAMPLES = Path(__file__).resolve().parents[2] / "params.yaml"
HEAD = """# params.yaml

`python -m tests.docs.generate` writes this page from the code; a test compares them.

- One section per stage, and a few more. An unknown field is refused.
- The file is YAML 1.2, as DVC reads it: `1e-4` is a number; `yes` and `on` are text. Types are not converted: `"16"` is
  not a number.
- A URL with a password is refused; passwords come from the environment.
- A number is at most 1,000,000,000. A name has at most 4,096 characters and no control characters.
- Refused, as readers of YAML differ about them: tags, directives, and without quotes 1_000, 0b1, -0x1 and dates.
- A section without required fields may be left out of the file, unless a stage in dvc.yaml names it.
- Relative paths begin at the current folder: for `shadowft run` and `dvc repro`, the workspace.
- The examples are the settings of the demo.

"""
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
BOUNDS = {
    limits.Ge: ("ge", "at least"),
    limits.Gt: ("gt", "above"),
    limits.Le: ("le", "at most"),
    limits.Lt: ("lt", "below"),
}


def page() -> str:
    """The whole page."""
    sections = {
        name: (field, model) for name, field in Params.model_fields.items() if (model := _model(field.annotation))
    }
    listed = ((f"[`{name}`](#{name})", _first(model)) for name, (_, model) in sections.items())
    parts = [HEAD, table(("section", "holds"), listed), "\n"]
    parts += [_section(name, field, model) for name, (field, model) in sections.items()]
    return "".join(parts).rstrip("\n") + "\n"


def fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field that is no section itself, by its dotted name."""
    for name, field in model.model_fields.items():
        if inner := _model(field.annotation):
            yield from fields(inner, f"{above}{name}.{'NAME.' if _is_mapping(field.annotation) else ''}")
        else:
            yield f"{above}{name}", field


def _section(name: str, field: FieldInfo, model: type[BaseModel]) -> str:
    rows = []
    for path, inner in fields(model, f"{name}.NAME." if _is_mapping(field.annotation) else f"{name}."):
        rows.append(
            (code(path.removeprefix(f"{name}.")), _type(inner), _default(inner), prose(inner.description or ""))
        )
    below = [f"- `{path}`: {_first(inner)}\n" for path, inner in _inner(model, "")]
    said = field.description or ""
    about = " ".join([*([f"{said[0].upper()}{said[1:]}."] if said else []), str(model.__doc__)])
    about = "".join([prose(about), "\n\n", *below, "\n" if below else ""])
    head = f"## {name}\n\n{about}{table(('field', 'value', 'default', 'meaning'), rows)}\n"
    example = re.search(rf"^{name}:.*\n(?:^(?: .*)?\n)*", EXAMPLES.read_text(encoding="utf-8") + "\n", re.MULTILINE)
    return head + (f"```yaml\n{example[0].rstrip()}\n```\n\n" if example else "")


def _inner(model: type[BaseModel], above: str) -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in model.model_fields.items():
        if inner := _model(field.annotation):
            yield f"{above}{name}", inner
            yield from _inner(inner, f"{above}{name}.")


def _first(model: type[BaseModel]) -> str:
    """The first sentence about a section."""
    return prose(re.split(r"(?<=[.)]) (?=[A-Z])", " ".join(str(model.__doc__).split()))[0])


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section that a type holds: itself, one that may be null, or the values of a mapping."""
    found = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, BaseModel)]
    return found[0] if found else None


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(one, name)}"
        for kind, (name, word) in BOUNDS.items()
        for one in field.metadata
        if isinstance(one, kind) and getattr(one, name) != VALUE_COUNT
    ]
    return ", ".join([_named(field.annotation), *bounds])


def _named(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        plain, *found = inner
        return _type(FieldInfo.from_annotation(annotation)) if found else _named(plain)
    if origin is Literal:
        return codes("|".join(str(value) or '""' for value in inner), "|")
    if origin in (Union, types.UnionType):
        return _or(list(map(_named, inner)))
    if origin is tuple:
        return f"list of {_named(inner[0])}"
    if origin is dict:
        return f"mapping of {_named(inner[0])} to {_named(inner[1])}"
    return NAMES.get(annotation, "any value")


def _or(names: list[str]) -> str:
    """Alternatives; null comes before the bounds of the one other."""
    if len(names) == 2 and names[1] == "null" and not names[0].startswith("`"):
        kind, comma, bounds = names[0].partition(", ")
        return f"{kind} or null{comma}{bounds}"
    return " or ".join(names)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return code(_written(value))


def _written(value: Any) -> str:
    """A value as params.yaml has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return "null" if value is None else '""' if value == "" else str(value)
