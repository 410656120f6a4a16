"""Shadow-FT: tune the Base, graft the delta on the Instruct, judge the result.

The public API of the library is `__all__`: the functions of api.py, the types of their arguments and
results, and the root of all errors. The names are imported on first use, so importing the package loads no dependency.
It sets no environment variable; the programs do that (environment.py). `__init__.pyi` has the names for type checkers.
"""

from importlib import import_module

_SOURCES = {  # public name: module, and the name there
    "Delta": "shadowft_core.delta:Delta",
    "Merge": "shadowft_core.grafting:Merge",
    "Options": "shadowft_core.grafting:Options",
    "Registry": "shadowft_core.params:Registry",
    "ShadowError": "shadowft_core.errors:ShadowError",
    "Store": "shadowft_core.params:Store",
    "Verdict": "shadowft_core.params:Verdict",
    "check_pair": "shadowft_core.api:check_pair",
    "extract": "shadowft_core.api:extract",
    "graft": "shadowft_core.api:graft",
    "judge": "shadowft_core.api:judge",
    "materialize": "shadowft_core.api:materialize",
    "open_delta": "shadowft_core.api:open_delta",
    "publish": "shadowft_core.api:publish",
    "read_receipt": "shadowft_core.api:read_receipt",
}

__all__ = ["__version__", *_SOURCES]  # noqa: PLE0604 the keys of a literal


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("shadowft")
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, source = _SOURCES[name].partition(":")
    value = globals()[name] = getattr(import_module(module), source)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
