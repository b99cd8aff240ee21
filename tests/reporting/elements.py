"""The elements and the text of a page."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = '"><img src=x onerror=alert(1)><script>alert(1)</script>$\\frac$'
"""A hostile name: markup for a page, and broken mathematics for a figure."""


class Elements(HTMLParser):
    """Every element with its attributes, and all text; checks that tags close in order."""

    VOID = ("meta", "br", "img", "use", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.data: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.data.append(data)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    @property
    def figures(self) -> list[dict[str, str | None]]:
        """The attributes of each figure."""
        return [attributes for tag, attributes in self.elements if tag == "svg"]

    @property
    def addresses(self) -> list[str]:
        """Whatever the page refers to."""
        return [
            value
            for _, attributes in self.elements
            for name, value in attributes.items()
            if name in ("src", "href", "xlink:href")
        ]

    @property
    def text(self) -> str:
        """The text as one line."""
        return " ".join(" ".join(self.data).split())


def assert_harmless(page: str, *places: str) -> None:
    """The page shows HOSTILE as text, and also each of `places`, texts that contain it."""
    elements = Elements(page)
    assert elements.open == []
    assert not {"script", "img"} & elements.tags
    for _, attributes in elements.elements:
        assert not any(name.startswith("on") for name in attributes)
    for place in (HOSTILE, *places):
        assert place in elements.text
