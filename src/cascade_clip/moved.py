"""Module paths that the documentation of 0.1.0 showed, and where these modules are now."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "cascade_clip.analysis": "cascade_clip.research",
    "cascade_clip.evaluate": "cascade_clip.evaluation",
    "cascade_clip.manifest": "cascade_clip.inference",
}


class MovedModules(MetaPathFinder, Loader):
    """Offer the names of a room under the old path of one of its modules."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the modules of the table, and no other."""
        return ModuleSpec(name, self) if name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Take the usual empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Look every name up in the room, and say where that is."""
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        room = importlib.import_module(new)
        module.__dict__["__getattr__"] = lambda name: getattr(room, name)


def accept_moved_modules() -> None:
    """Make the old paths importable."""
    sys.meta_path.append(MovedModules())
