"""A page as a parser sees it."""

from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

EMPTY_ELEMENTS = {"meta", "br", "path", "use", "circle", "wbr"}


class Page(HTMLParser):
    """Checks that elements nest; collects texts, identifiers and what the page refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.names: list[str] = []
        self.references: list[str] = []
        self.tags: Counter[str] = Counter()
        self.path = path
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.names += [value for key, value in attrs if key == "id" and value]
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY_ELEMENTS:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY_ELEMENTS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def pictures(self) -> int:
        """How many pictures it has, swatches of legends not counted."""
        return self.source.count('<svg role="img"')

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
