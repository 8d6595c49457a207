"""Commands of ours mean the same beside somebody's project, whatever its modules are called.

`python -m NAME` puts the working folder first in Python's path. A package `experiments` there would be the one in which
NAME is looked for: so a line in the environment's `.pth` file imports this module where Python is started in that
way, before it looks. And a `datasets.py` there would be imported in place of what is installed: commands let the folder
stand behind it.
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


def named_module(arguments: list[str]) -> str:
    """The module that an interpreter was told to run by `-m`, "" for none.

    Args:
        arguments: of the interpreter, as `sys.orig_argv`.
    """
    return next((name for flag, name in pairwise(arguments) if flag == "-m"), "")


def is_asked_for(arguments: list[str], folder: str) -> bool:
    """Whether a command line names an experiment of ours that the folder it is given in has not.

    Args:
        arguments: of the interpreter, as `sys.orig_argv`.
        folder: the working folder.
    """
    named = named_module(arguments)
    if not named.startswith(f"{_PACKAGE}."):
        return False
    file = os.path.join(*named.split(".")) + ".py"
    return os.path.isfile(os.path.join(_ROOT, file)) and not os.path.isfile(os.path.join(folder, file))


def prefer_ours() -> None:
    """Puts the finder in front, where Python is started so."""
    try:
        folder = os.getcwd()
    except OSError:  # it has been removed
        return
    if is_asked_for(sys.orig_argv, folder):
        sys.meta_path.insert(0, Ours)


def stand_behind_installed() -> None:
    """Moves the working folder behind what is installed, in commands of ours alone.

    It stays on the path, for functions of the user's that flags name.
    """
    if named_module(sys.orig_argv).partition(".")[0] not in (_PACKAGE, "bilevel"):
        return
    first = sys.path[0] if sys.path else ""
    if first == os.getcwd() and os.path.realpath(first) != os.path.realpath(_ROOT):
        sys.path.append(sys.path.pop(0))
