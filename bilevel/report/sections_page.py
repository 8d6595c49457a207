"""A page of sections that belong to no run of training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilevel.report.contributed import contributed
from bilevel.report.page import flat, write_page
from bilevel.report.sections import Section


def write_sections_page(
    path: Path,
    title: str,
    facts: Sequence[str],
    sections: Sequence[Section],
    settings: Mapping[str, Any],
) -> None:
    """Writes a page that needs no other file and no network.

    Args:
        path: the file; its folder exists.
        title: its heading.
        facts: what stands below it.
        sections: what it shows.
        settings: plain values by name, shown at its end.
    """
    drawn = [{**section, "method": ""} for section in contributed([("", section) for section in sections])]
    content = {"title": title, "facts": list(facts), "sections": drawn, "settings": flat(settings)}
    write_page(path, "sections.html", content)
