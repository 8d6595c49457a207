"""`python -m experiments.NAME` means ours, also where a folder holds a package `experiments` of somebody's own.

Python puts the working folder first, and would look for NAME in that package alone. So a line in the environment's
`.pth` file imports this module where Python is started in that way, before it looks.
"""

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from itertools import pairwise
from typing import Any

_PACKAGE = "experiments"
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Ours:
    """Finds the package beside this one."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The package's place, where it is asked for."""
        if name != _PACKAGE:
            return None
        folder = os.path.join(_ROOT, _PACKAGE)
        file = os.path.join(folder, "__init__.py")
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[folder])


def is_asked_for(arguments: list[str], folder: str) -> bool:
    """Whether a command line names a module of ours that the folder it is given in has not.

    Args:
        arguments: of the interpreter, as `sys.orig_argv`.
        folder: the working folder.
    """
    named = [after for flag, after in pairwise(arguments) if flag == "-m"][:1]
    if not named or not named[0].startswith(f"{_PACKAGE}."):
        return False
    file = os.path.join(*named[0].split(".")) + ".py"
    return os.path.isfile(os.path.join(_ROOT, file)) and not os.path.isfile(os.path.join(folder, file))


def prefer_ours() -> None:
    """Puts the finder in front, where Python is started so."""
    try:
        folder = os.getcwd()
    except OSError:  # it has been removed
        return
    if is_asked_for(sys.orig_argv, folder):
        sys.meta_path.insert(0, Ours)  # type: ignore[arg-type]
