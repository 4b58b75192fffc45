"""Package names that are imported when they are first used, so that light rooms stay light."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package whose names are in `places`, by name: `module` below
    the package, or `module:attribute` where it has another name there."""
    # the import of a module sets its name in the package, over a function of that name
    assert all(name != place.partition(":")[0] for name, place in places.items())

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it has {sorted(places)}"
            )
        module, _, attribute = places[name].partition(":")
        return getattr(importlib.import_module(f"{package}.{module}"), attribute or name)

    return find
