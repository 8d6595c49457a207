"""The project as a whole: what importing costs, who may import whom, how long files are, its version."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bilevel

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bilevel", "models", "experiments")
HEAVY = (
    "datasets",
    "matplotlib",
    "orbax",
    "pyarrow",
    "sklearn",
    "tensorboardX",
    "tokenizers",
    "transformers",
    "tyro",
)
MOST_LINES = 300


@pytest.mark.parametrize("package", ["bilevel", "bilevel.core", "models"])
def test_importing_is_light_and_starts_no_device(package: str) -> None:
    program = f"""
import sys, jax
before = set(sys.modules)
import {package}
from jax._src import xla_bridge
print(sorted(set({HEAVY!r}) & (set(sys.modules) - before)), xla_bridge.backends_are_initialized())
jax.devices()
assert xla_bridge.backends_are_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[] False\n"


def test_no_file_holds_more_than_one_idea_can_need() -> None:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "benchmarks")]
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    assert len(lengths) > 20
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-logo", "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nobody_imports_what_they_must_not() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("bilevel/core/extra.py", "import bilevel.errors", "bilevel.core -> bilevel.errors"),
        ("bilevel/core/extra.py", "import matplotlib", "bilevel.core -> matplotlib"),
        ("bilevel/core/extra.py", "import models.layers", "bilevel.core -> models"),
        ("models/extra.py", "from bilevel import errors", "models -> bilevel"),
        ("bilevel/data/extra.py", "import models.config", "bilevel -> models"),
        ("bilevel/weighting/extra.py", "import models.config", "bilevel -> models"),
        ("bilevel/methods/extra.py", "import experiments", "bilevel -> experiments"),
        ("bilevel/schedule/extra.py", "import bilevel.runs.timing", "bilevel.schedule -> bilevel.runs"),
    ],
)
def test_import_rules_notice_what_breaks_them(tmp_path: Path, file: str, line: str, broken: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / file).write_text(f"{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    source, target = broken.split(" -> ")
    assert f"{source} is not allowed to import {target}" in done.stdout


def test_version_is_the_newest_of_the_changelog() -> None:
    versions = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert versions[0] == bilevel.__version__


def pins(name: str) -> set[str]:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    return set(re.findall(r"^[\w.-]+==\S+(?: ; [^\\\n]+?)?(?= \\\n)", text, re.M))


def test_requirements_are_hashed_name_no_index_and_agree() -> None:
    for name in ("run.txt", "dev.txt"):
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        requirements = re.split(r"\n(?=\S)", text.strip())
        assert len(requirements) == len(pins(name)) > 50
        assert all("--hash=sha256:" in requirement for requirement in requirements)
        assert "://" not in text
    # Where a package is needed may widen, its version may not change.
    run, dev = ({pin.split(" ; ")[0] for pin in pins(name)} for name in ("run.txt", "dev.txt"))
    assert run < dev
    jax = {pin for pin in pins("run.txt") if pin.startswith("jax==")}
    assert any("< '3.12'" in pin and pin.startswith("jax==0.10.") for pin in jax)
    assert any(">= '3.12'" in pin and pin.startswith("jax==0.12.") for pin in jax)


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {re.split("==", pin)[0].lower() for pin in pins("dev.txt")}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=\[ ]", name)[0].lower() for name in wanted} <= pinned


def test_commands_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    named = set(re.findall(r"`make ([a-z-]+)", readme)) | set(re.findall(r"^ *make ([a-z-]+)", readme, re.M))
    assert {"run", "test"} <= named <= targets
    modules = set(re.findall(r"python -m ((?:bilevel|experiments|tests)[\w.]*)", "\n".join([readme, *pages])))
    assert "experiments.bds_alpaca" in modules
    for module in modules:
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
