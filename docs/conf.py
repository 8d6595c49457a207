"""How the documentation is built: `make docs`."""

import re
from typing import Any

import bilevel

project = "bilevel-lm"
author = "The bilevel-lm authors"
version = release = bilevel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "bilevel-lm"
html_copy_source = False

# Shapes stand in the annotations, so that a signature is the shortest way to say what a function takes.
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|References|Yields|Example|Examples):$")
_MARKUP = re.compile(r"[*_|\\]")


def _as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with mathematics: indented lines outside a section are shown as they stand."""
    written: list[str] = []
    section = literal = code = False
    for line in lines:
        if _SECTION.match(line):
            section = True
        elif line and not line.startswith(" "):
            section = False
        indented = line.startswith("    ") and not section
        if indented and not literal:
            written += ["::", ""]
        if line:
            literal = indented
        if not literal and not line.lstrip().startswith((">>>", "...")):
            pieces = line.split("`")
            texts = range(int(code), len(pieces), 2)
            pieces = [_escaped(piece, n > 0) if n in texts else piece for n, piece in enumerate(pieces)]
            line = "``".join(pieces)
            code ^= len(pieces) % 2 == 0
        written.append(line)
    lines[:] = written


def _escaped(text: str, after_code: bool) -> str:
    """The text with no markup of its own; letters right after code are set apart, as in `row`s."""
    plain = _MARKUP.sub(lambda found: f"\\{found[0]}", text)
    return f"\\ {plain}" if after_code and text[:1].isalnum() else plain


def setup(app: Any) -> None:
    """Registers the docstring filter, before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=100)
