"""Finds the `models` that came with this library where a file of that name in the user's folder stands before it."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_NAME = "models"
_OURS = Path(__file__).resolve().parents[1] / _NAME / "__init__.py"


def uncover_models(name: str = _NAME, ours: Path = _OURS) -> None:
    """Makes a later `import models` find ours, and through it the names of the user's own.

    A script's folder comes first in Python's path, and `models.py` is a common name there. Where it would hide our
    package, ours is imported under the name at once; names that it does not have, and submodules, are then looked up
    in the user's. Nothing is done where nothing is hidden, or where the name was imported before: the user's own
    stays what it is, since no part of this library needs ours.

    Args:
        name: of the package.
        ours: its file.
    """
    if name in sys.modules or not ours.is_file():
        return
    theirs = importlib.util.find_spec(name)
    if theirs is None or theirs.origin is None or Path(theirs.origin).resolve() == ours:
        return
    spec = importlib.util.spec_from_file_location(name, ours)
    assert spec is not None
    assert spec.loader is not None
    assert spec.submodule_search_locations is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    spec.submodule_search_locations.extend(theirs.submodule_search_locations or ())
    _add_names_of(module, theirs)


def _add_names_of(module: ModuleType, theirs: ModuleSpec) -> None:
    """Lets a module answer for the names of another, which is executed when it is first needed."""
    own_names = module.__getattr__
    read: list[ModuleType] = []

    def either(name: str) -> Any:
        try:
            return own_names(name)
        except AttributeError:
            if name.startswith("__"):
                raise
        if not read:
            assert theirs.loader is not None
            # Known before it is executed: it may import itself.
            read.append(importlib.util.module_from_spec(theirs))
            theirs.loader.exec_module(read[0])
        try:
            return getattr(read[0], name)
        except AttributeError:
            raise AttributeError(
                f"neither the models of bilevel-lm nor {theirs.origin} have a name {name!r}"
            ) from None

    module.__dict__["__getattr__"] = either
