"""Checks that an adapter's file has every tensor that its config names."""

from shadowft_core.delta.adapter import Adapter
from shadowft_core.errors import AdapterError
from shadowft_core.weights import by_reason, remedy, require_one_sided


class NotAdapted(AdapterError):
    """The config targets a tensor that the file does not adapt: it was lost, or the loaded model lacks it."""


def require_complete(adapter: Adapter) -> None:
    """Require the tensors of every module and parameter that the config names, except those ignored by pattern.

    Fills `adapter.ignored`. Raises NotAdapted, AdapterError, InputError for a pattern that matches an adapted tensor.
    """
    before, settings, family = adapter.before, adapter.settings, adapter.before.family
    adapted = {adapter.home(name) for name in adapter.changes}
    by_files = any(_is_named_as_in_files(adapter, module) for module in adapter.modules)
    adapted_names = {name for name in before.names if adapter.home(name) in adapted}
    require_one_sided(adapter.ignore, adapted_names, f"{before.path} and {adapter.file}")
    one_sided = {"base": set(before.names) - adapted_names}
    left, adapter.ignored = by_reason(one_sided, adapter.ignore, lambda _: False, family.title)
    required = adapted_names.union(left.get("base", ()))
    for name in before.names:
        if name not in required or family.ignores(name):
            continue
        parameter = name if by_files else family.parameter(name)
        separate = by_files or not family.known or parameter == family.in_memory(name)  # else fused in memory
        module, _, kind = (family.in_memory(name) if separate and not by_files else parameter).rpartition(".")
        matrix = separate and kind == "weight" and len(before.info(name).shape) == 2
        targeted = (matrix and settings.targets(module)) or settings.targets_parameter(parameter)
        if targeted and adapter.home(name) not in adapted:
            raise NotAdapted(
                f"{adapter.file}: {module if matrix else parameter} is targeted but has no factors; the file is "
                f"incomplete, save it again{remedy({'base': [name]}, adapted_names)}"
            )
        biased = kind == "bias" and (
            settings.bias == "all" or (settings.bias.endswith("_only") and module in adapter.modules)
        )
        if name not in adapter.given and (biased or settings.saves(module)):
            raise AdapterError(
                f"{adapter.file}: {name} was trained according to {settings.path.name}, but is missing; save the "
                "adapter again"
            )
    trained = [module for module, keys in adapter.modules.items() if "rows" in keys]
    tied = [alias.removesuffix(".weight") for name in before.ties for alias in (name, family.in_memory(name))]
    for pattern in settings.token_rows:
        if not any(adapter.has_rows(pattern, module) for module in [*trained, *tied]):
            raise AdapterError(f"{adapter.file}: the trained rows of {pattern} are missing; save the adapter again")


def _is_named_as_in_files(adapter: Adapter, module: str) -> bool:
    """Whether the adapter uses a module's name in the files and the loaded model has another name for it."""
    name = f"{module}.weight"
    return name in adapter.before and adapter.before.family.parameter(name) != name
