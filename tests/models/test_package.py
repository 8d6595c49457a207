import inspect
import subprocess
import sys

import pytest

import models


def test_importing_loads_neither_jax_nor_transformers() -> None:
    heavy = {"jax", "flax", "safetensors", "tokenizers", "transformers"}
    code = f"import sys, models; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_and_running_a_model_needs_no_transformers() -> None:
    names = ", ".join(models.__all__)
    code = f"import sys\nfrom models import {names}\nprint('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_names_are_those_of_the_package() -> None:
    assert dir(models) == models.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        models.nothing  # noqa: B018


@pytest.mark.parametrize(
    "name", [name for name in models.__all__ if inspect.isfunction(getattr(models, name))]
)
def test_every_function_has_an_example(name: str) -> None:
    assert ">>> " in (inspect.getdoc(getattr(models, name)) or "")
