"""A file of the user's that has the name of our package of models."""

from __future__ import annotations

import importlib
import sys

import pytest

from bilevel.shadowed import uncover_models

OURS = """
def __getattr__(name):
    if name == "load":
        return "our load"
    raise AttributeError(name)
"""


@pytest.fixture
def name(tmp_path, monkeypatch):
    """The name of a package of ours, installed behind the user's folder in the path."""
    (tmp_path / "installed" / "catalogue").mkdir(parents=True)
    (tmp_path / "installed" / "catalogue" / "__init__.py").write_text(OURS)
    (tmp_path / "installed" / "catalogue" / "layers.py").write_text("WIDTH = 8\n")
    (tmp_path / "mine").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.syspath_prepend(tmp_path / "mine")
    yield "catalogue"
    for module in [module for module in sys.modules if module.split(".")[0] == "catalogue"]:
        del sys.modules[module]


def uncover(tmp_path, name):
    uncover_models(name, (tmp_path / "installed" / name / "__init__.py").resolve())


def test_ours_is_found_and_answers_for_the_names_of_the_users_file(tmp_path, name):
    (tmp_path / "mine" / "catalogue.py").write_text("load, rows = 'their load', [1, 2]\n")
    uncover(tmp_path, name)
    found = importlib.import_module(name)
    assert (found.load, found.rows) == ("our load", [1, 2])
    assert importlib.import_module(f"{name}.layers").WIDTH == 8
    with pytest.raises(AttributeError, match=r"neither .*catalogue\.py have a name 'absent'"):
        _ = found.absent


def test_submodules_of_the_users_package_are_found_behind_ours(tmp_path, name):
    (tmp_path / "mine" / "catalogue").mkdir()
    (tmp_path / "mine" / "catalogue" / "__init__.py").write_text("")
    (tmp_path / "mine" / "catalogue" / "net.py").write_text("DEPTH = 3\n")
    (tmp_path / "mine" / "catalogue" / "layers.py").write_text("WIDTH = 16\n")
    uncover(tmp_path, name)
    assert importlib.import_module(f"{name}.net").DEPTH == 3
    assert importlib.import_module(f"{name}.layers").WIDTH == 8


def test_the_users_file_stays_what_it_was_once_it_was_imported(tmp_path, name):
    (tmp_path / "mine" / "catalogue.py").write_text("load = 'their load'\n")
    theirs = importlib.import_module(name)
    uncover(tmp_path, name)
    assert importlib.import_module(name) is theirs
    assert theirs.load == "their load"


def test_nothing_is_imported_where_nothing_is_hidden(tmp_path, name):
    uncover(tmp_path, name)
    assert name not in sys.modules
