"""Reads table.json: which entries describe a model, found by its config."""

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def table() -> dict[str, Any]:
    """The whole table: `types` (class by model type), `kinds` (by suffix of a name), `classes` (entry by class)."""
    found: dict[str, Any] = json.loads(Path(__file__).with_name("table.json").read_text(encoding="utf-8"))
    return found


def entries(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The entries of the model's class, then of its text model's class."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if name := class_of(part):
            yield table()["classes"][name]


def class_of(config: Mapping[str, Any]) -> str | None:
    """The class that transformers' Auto classes choose for a config: by model_type first, then by architectures."""
    kind, named, classes = config.get("model_type"), config.get("architectures"), table()["classes"]
    if isinstance(kind, str) and kind in table()["types"]:
        return str(table()["types"][kind])
    return str(named[0]) if isinstance(named, list) and named and named[0] in classes else None


def field(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of a config; None when it is missing."""
    for step in path.split("."):
        if not isinstance(config, Mapping) or step not in config:
            return None
        config = config[step]
    return config


def tie_state(config: Mapping[str, Any], fields: Collection[str]) -> str:
    """A letter for each field, as the table writes them: `T`rue, `F`alse or `-`, absent."""
    values = [field(config, path) for path in fields]
    return "".join("-" if value is None else "T" if value else "F" for value in values)
