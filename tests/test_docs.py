"""Examples in docstrings and pages run and print what they say; the documentation builds without a warning."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bilevel", "models", "experiments")
FENCED = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def holds_example(path: Path) -> bool:
    return ">>> " in path.read_text(encoding="utf-8")


def modules() -> list[str]:
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py") if holds_example(path)]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)


def pages() -> list[str]:
    return sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md") if holds_example(path)
    )


@pytest.mark.parametrize("module", modules())
def test_examples_in_docstrings_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # examples may write
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("page", pages())
def test_examples_in_pages_run(page: str) -> None:
    examples = "\n".join(FENCED.findall((ROOT / page).read_text(encoding="utf-8")))
    test = doctest.DocTestParser().get_doctest(examples, {}, page, page, 0)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.slow  # `.ci/run` builds it as `make docs`
def test_documentation_builds_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-d",
            tmp_path / "trees",
            "docs",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
