"""The params.yaml of a new workspace, with comments: the beginner's, or a preset's."""

import json
import re

import yaml

from shadowft_core import presets
from shadowft_core.workspace import template

OPEN = {"base": "path/to/base", "instruct": "path/to/instruct", "data": "path/to/rows.jsonl"}  # to be filled in
_PLAIN = re.compile(r"[A-Za-z/.][\w/.+@-]*(:[\w/.+@-]+)?")


def settings(name: str, base: str | None, instruct: str | None, data: str, preset: str | None = None) -> str:
    """The text. `name` is that of the registered model, `data` the value of prepare.data.

    Raises InputError for an unknown preset.
    """
    values = {"base": _yaml(base or OPEN["base"]), "instruct": _yaml(instruct or OPEN["instruct"]), "data": _yaml(data)}
    values["name"] = _yaml(name)
    if preset is None:
        text = template.content(template.OWN["params.yaml"]).decode()
        return re.sub(
            r"(?<=: )\{(base|instruct|data|name)\}$", lambda match: values[match[1]], text, flags=re.MULTILINE
        )
    text = presets.show(preset)
    for field, value in {**values, "tasks": "tasks    # a folder of task files; tasks/README.md shows one"}.items():
        before, _, rest = text.partition(f"\n  {field}: ")
        _, _, after = rest.partition("\n")
        text = f"{before}\n  {field}: {value}\n{after}"
    return text


def _yaml(value: str) -> str:
    """A string as YAML, quoted unless it is plainly text; `null` and `true` are not."""
    if _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
