"""What the package offers is shown by an example; tests/test_docs.py runs them."""

import inspect

import pytest

import bilevel.data

FUNCTIONS = sorted(name for name, value in vars(bilevel.data).items() if inspect.isfunction(value))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example(name: str) -> None:
    assert ">>> " in inspect.getdoc(getattr(bilevel.data, name))
