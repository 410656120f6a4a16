"""Checks that an adapter's file holds all that its config names."""

from typing import TYPE_CHECKING

from shadowft_core.errors import AdapterError
from shadowft_core.weights import by_reason, remedy, require_one_sided

if TYPE_CHECKING:
    from shadowft_core.delta.adapters import Adapter


class NotAdapted(AdapterError):
    """The config targets a tensor that the file does not adapt; if training left it out, only the Base holds it."""


def require_complete(adapter: "Adapter") -> None:
    """Every module and parameter the config names must have its tensors in the file. Raises AdapterError."""
    before, settings, family = adapter.before, adapter.settings, adapter.before.family
    adapted = {adapter.home(name) for name in adapter.changes}
    by_files = any(_is_named_as_in_files(adapter, module) for module in adapter.modules)
    mine = {name for name in before.names if adapter.home(name) in adapted}
    require_one_sided(adapter.ignore, mine, f"{before.path} and {adapter.file}")
    alone = {"base": set(before.names) - mine}
    left, adapter.ignored = by_reason(alone, adapter.ignore, lambda _: False, family.title)
    asked = mine.union(left.get("base", ()))
    for name in before.names:
        if name not in asked or family.ignores(name):
            continue
        parameter = name if by_files else family.parameter(name)
        is_own = by_files or not family.known or parameter == family.in_memory(name)  # else fused with others in memory
        module, _, kind = (family.in_memory(name) if is_own and not by_files else parameter).rpartition(".")
        matrix = is_own and kind == "weight" and len(before.info(name).shape) == 2
        targeted = (matrix and settings.targets(module)) or settings.targets_parameter(parameter)
        if targeted and adapter.home(name) not in adapted:
            raise NotAdapted(
                f"{adapter.file}: {module if matrix else parameter} is targeted but has no factors; the file is "
                f"incomplete, save it again{remedy({'base': [name]}, mine)}"
            )
        biased = kind == "bias" and (
            settings.bias == "all" or (settings.bias.endswith("_only") and module in adapter.modules)
        )
        if name not in adapter.given and (biased or settings.saves(module)):
            raise AdapterError(
                f"{adapter.file}: {name} was trained, says {settings.path.name}, but is missing; save the adapter again"
            )
    trained = [module for module, keys in adapter.modules.items() if "rows" in keys]
    tied = [alias.removesuffix(".weight") for name in before.ties for alias in (name, family.in_memory(name))]
    for pattern in settings.token_rows:
        if not any(adapter.has_rows(pattern, module) for module in [*trained, *tied]):
            raise AdapterError(f"{adapter.file}: the trained rows of {pattern} are missing; save the adapter again")


def _is_named_as_in_files(adapter: "Adapter", module: str) -> bool:
    """Whether a module has its name in the files, which differs from its name in the loaded model."""
    name = f"{module}.weight"
    return name in adapter.before and adapter.before.family.parameter(name) != name
