"""A page: a template filled in, alone in one file that needs no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bilevel.storage.atomic import write_atomically

UNSET = "–"
_HERE = Path(__file__).parent


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Writes a page.

    Args:
        path: the file.
        template: name of the template beside this file.
        content: what it shows; texts are escaped, `Markup` is not.
    """
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    write_atomically(path, templates.get_template(template).render(style=style, **content))


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as `outer.inner` keys with their values as text, a dash for None."""
    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            lines.append((f"{prefix}{key}", ", ".join(map(str, value)) or UNSET))
        else:
            lines.append((f"{prefix}{key}", UNSET if value is None else str(value)))
    return lines
